/**
 * What the user made of the picture, and the way back.
 *
 * The state is never changed, only replaced: {objects, current, everything, looks}.
 * objects: [{id, points: [[x, y, label]], box, chosen, before}], each one mask; before: what was asked last, and answered; current: the id of the one that clicks change.
 * everything: the id of the job that filled the picture, or null.
 * looks: by mask key, {colour, hidden}, where they are not the usual ones.
 * What the service answered is kept apart, by what was asked, so that going back needs no request.
 */

export const EMPTY = Object.freeze({ objects: [], current: null, everything: null, looks: {} });

export class History {
  #past = [];
  #future = [];
  #onChange;
  now = EMPTY;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  /** Take a step that can be undone. */
  step(change) {
    this.#past.push(this.now);
    this.#future = [];
    this.now = { ...this.now, ...change };
    this.#onChange();
  }

  undo() {
    this.#move(this.#past, this.#future);
  }

  redo() {
    this.#move(this.#future, this.#past);
  }

  #move(from, to) {
    if (!from.length) return;
    to.push(this.now);
    this.now = from.pop();
    this.#onChange();
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  clear() {
    this.#past = [];
    this.#future = [];
    this.now = EMPTY;
    this.#onChange();
  }
}
