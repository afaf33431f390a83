/** The panel of masks: candidates, thresholds, appearance, and the list. */
import { asScore, byId, element, inPixels, radioGroup } from "./dom.js";
import { bestOf } from "./shown.js";

export class MaskList {
  #on;
  #rows = new Map();
  #fill = null;
  #candidates = 0;
  #showCandidate;

  /** on: {look(key, look), choose(key), candidate(number), light(key), filter(least), opacity(share), all(shown)}. */
  constructor(on) {
    this.#on = on;
    this.#showCandidate = radioGroup(byId("candidates"), (value) => on.candidate(Number(value)));
    for (const id of ["least-score", "least-stability", "least-area"]) byId(id).oninput = () => on.filter(this.#read());
    byId("opacity").oninput = ({ target }) => on.opacity(target.value / 100);
    byId("all").onchange = ({ target }) => on.all(target.checked);
  }

  /** Set the sliders for a new set of masks; return the thresholds at which it is shown first. */
  limits({ masks, usual }) {
    this.#fill = masks;
    const ranges = { score: masks.map(({ score }) => score), stability: masks.map(({ stability }) => stability) };
    for (const [name, values] of Object.entries(ranges)) {
      const slider = byId(`least-${name}`);
      const least = values.length ? Math.floor(Math.min(...values) * 200) / 200 : 0;
      slider.min = Math.min(least, usual?.[name] ?? 1);
      slider.max = 1;
      slider.value = usual?.[name] ?? least;
    }
    byId("least-area").value = 0;
    return this.#read();
  }

  #read() {
    // The slider's scale is that of areas' sizes: each fifth is a tenth as much.
    const share = Number(byId("least-area").value) / 100;
    const largest = Math.max(1, ...(this.#fill ?? []).map(({ area }) => area));
    return {
      score: Number(byId("least-score").value),
      stability: Number(byId("least-stability").value),
      area: share === 0 ? 0 : Math.round(largest ** share),
    };
  }

  hasCandidate(number) {
    return number < this.#candidates;
  }

  light(key) {
    for (const [other, row] of this.#rows) row.root.classList.toggle("lit", other === key);
  }

  show({ all, fill, view, current, answer, image }) {
    const listed = all.filter(({ passes }) => passes);
    const filled = all.filter(({ key }) => key.startsWith("e"));
    this.#showCandidates(current, answer);
    byId("filters").hidden = !fill;
    byId("filters-title").textContent = fill?.mode === "everything" ? "Everything" : "Job";
    byId("count").textContent = `${filled.filter(({ passes }) => passes).length} of ${filled.length}`;
    byId("least-score-value").textContent = asScore(view.least.score);
    byId("least-stability-value").textContent = asScore(view.least.stability);
    byId("least-area-value").textContent = inPixels(view.least.area);
    byId("looks").hidden = all.length === 0 || Boolean(image?.tinted);
    byId("opacity-value").textContent = `${Math.round(view.opacity * 100)} %`;
    byId("all").checked = view.shown;
    byId("no-masks").hidden = listed.length > 0;
    this.#showRows(listed, view);
  }

  #showCandidates(current, answer) {
    const found = answer?.masks ?? [];
    this.#candidates = found.length;
    byId("current").hidden = found.length < 2;
    if (found.length < 2) return;
    byId("current-title").textContent = `Object ${current.id}`;
    const group = byId("candidates");
    while (group.children.length > found.length) group.lastChild.remove();
    while (group.children.length < found.length) {
      const number = group.children.length;
      group.append(element("button", { type: "button", role: "radio", "data-value": number }, element("span", { class: "value" }), element("small"), element("small")));
    }
    found.forEach((mask, number) => {
      const button = group.children[number];
      button.setAttribute("aria-label", `Candidate ${number + 1}: score ${asScore(mask.score)}, stability ${asScore(mask.stability)}, ${inPixels(mask.area)}`);
      button.children[0].textContent = asScore(mask.score);
      button.children[1].textContent = `stab. ${asScore(mask.stability)}`;
      button.children[2].textContent = inPixels(mask.area);
    });
    this.#showCandidate(current.chosen ?? bestOf(found));
  }

  /** Rows are kept while their masks are, so that the keyboard's focus stays where it is. */
  #showRows(listed, view) {
    const list = byId("masks");
    const wanted = new Set(listed.map(({ key }) => key));
    for (const [key, row] of this.#rows) {
      if (wanted.has(key)) continue;
      row.root.remove();
      this.#rows.delete(key);
    }
    listed.forEach((one, place) => {
      if (!this.#rows.has(one.key)) this.#rows.set(one.key, this.#row(one));
      const row = this.#rows.get(one.key);
      if (list.children[place] !== row.root) list.insertBefore(row.root, list.children[place] ?? null);
      row.shown.checked = !one.hidden;
      row.colour.value = one.colour;
      row.numbers.textContent = `${asScore(one.mask.score)} · ${inPixels(one.mask.area)}`;
      row.pick.title = `Stability ${asScore(one.mask.stability)}`;
      row.root.classList.toggle("off", one.hidden || !view.shown);
      if (view.marked === one.key) row.pick.setAttribute("aria-current", "true");
      else row.pick.removeAttribute("aria-current");
    });
  }

  #row({ key, label }) {
    const { look, choose, light } = this.#on;
    const shown = element("input", { type: "checkbox", "aria-label": `Show ${label}`, onchange: ({ target }) => look(key, { hidden: !target.checked }) });
    const colour = element("input", { type: "color", "aria-label": `Colour of ${label}`, onchange: ({ target }) => look(key, { colour: target.value }) });
    const pick = element("button", { class: "pick", type: "button", onclick: () => choose(key), onfocus: () => light(key), onblur: () => light(null) }, label);
    const numbers = element("span", { class: "numbers" });
    const root = element("li", { class: "mask", "data-key": key, onpointerenter: () => light(key), onpointerleave: () => light(null) }, shown, colour, pick, numbers);
    return { root, shown, colour, pick, numbers };
  }
}
