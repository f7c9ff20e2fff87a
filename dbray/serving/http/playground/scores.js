// The scores of a model, in words and figures.

import { element } from "./dom.js";

// The field of each score, by the name that the server sorts by, and the base's and best figures.
export const SCORES = {
  identity: ["identity", "base_identity", "ceiling"],
  margin: ["nearest", null, "ceiling_nearest"],
  prompt: ["prompt", "base_prompt", null],
  drift: ["drift", null, null],
  preservation: ["preservation", "base_preservation", null],
  diversity: ["diversity", "base_diversity", null],
  copies: ["copies", null, null],
};

const figure = (value) => (value === undefined || value === null ? null : Number(value).toFixed(3));

// "identity 0.712", or null where it was not measured.
export function scoreOf(model, name) {
  const value = figure(model.dbray.scores?.[SCORES[name]?.[0]]);
  return value && `${name} ${value}`;
}

function row(scores, name) {
  const [own, base, ceiling] = SCORES[name].map((field) => field && figure(scores[field]));
  if (!own) return [];
  const notes = [base && `base ${base}`, ceiling && `ceiling ${ceiling}`].filter(Boolean);
  const value = element("dd", "", own);
  value.append(element("small", "", notes.join(", ")));
  return [element("dt", "", name), value];
}

// The figures of a model in a list, and what is wrong with it.
export function showScores(model, figures, flags) {
  const { scores } = model.dbray;
  figures.hidden = !scores;
  figures.replaceChildren(...(scores ? Object.keys(SCORES) : []).map((name) => {
    const group = element("div");
    group.append(...row(scores, name));
    return group;
  }).filter((group) => group.childElementCount));
  flags.replaceChildren(...(model.dbray.flags || []).map((flag) => {
    const item = element("li");
    item.title = flag.evidence;
    item.append(element("strong", "", `It ${flag.words}.`), ` To try: ${flag.fix}.`);
    return item;
  }));
  flags.hidden = !flags.childElementCount;
}
