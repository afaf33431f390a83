/** Which masks there are, and how each is shown: what the service answered, and what the user made of it. */
import { askedOf } from "./work.js";

/** Told apart by people who see colours differently, too.  After Okabe and Ito's palette. */
const COLOURS = ["#0090e0", "#f28e2b", "#18a974", "#e0559b", "#f2c500", "#7b61ff", "#e5484d", "#39c5d8", "#9a6a3a", "#6cae1e"];

/** Return an object's candidates; the earlier ones until there are newer. */
export function answerOf(work, object) {
  const answer = object && work?.answers.get(askedOf(object));
  return answer?.masks ? answer : object && work?.answers.get(object.before);
}

/** Return the number of the candidate with the highest score. */
export function bestOf(candidates) {
  return candidates.reduce((best, { score }, number) => (score > candidates[best].score ? number : best), 0);
}

/**
 * Return all masks, those of objects first: {key, label, mask, colour, hidden, passes}.
 *
 * state: of history.js.  least: the thresholds; `passes` is false below them.
 */
export function allMasks({ objects, everything, looks }, work, least) {
  const found = [];
  for (const object of objects) {
    const candidates = answerOf(work, object)?.masks ?? [];
    const mask = candidates[object.chosen ?? bestOf(candidates)];
    if (mask) found.push({ key: `o${object.id}`, label: `Object ${object.id}`, mask, passes: true });
  }
  work?.fills.get(everything)?.masks.forEach((mask, number) => {
    const passes = mask.score >= least.score && mask.stability >= least.stability && mask.area >= least.area;
    found.push({ key: `e${number + 1}`, label: `Mask ${number + 1}`, mask, passes });
  });
  return found.map((one, number) => {
    const { colour = COLOURS[number % COLOURS.length], hidden = false } = looks[one.key] ?? {};
    return { ...one, colour, hidden };
  });
}
