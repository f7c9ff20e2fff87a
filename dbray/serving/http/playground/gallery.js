// The list of models: a card for each, pages of the list, and the search.

import { getJson, picture, previewPath } from "./api.js";
import { $, element } from "./dom.js";
import { scoreOf } from "./scores.js";

const PAGE = 100;
const PAUSE_MS = 250; // in typing; the server may go through its whole storage for a list

let last = ""; // id of the last model listed
let typing = 0; // the timer that runs while somebody types
let listing = 0; // counts lists that were begun: pages of older ones come too late
let chosen = ""; // id of the model whose card is marked
let onChoose = () => {};

// Thumbnails are fetched when their card comes into sight: a registry may hold thousands.
const sight = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    sight.unobserve(target);
    addThumbnail(target).catch(() => {}); // the letter stays
  }
});

async function addThumbnail(card) {
  const model = await getJson(`/v1/models/${encodeURIComponent(card.dataset.id)}`);
  if (model.dbray.scores) $("sorting").hidden = false;
  const names = model.dbray.previews;
  const name = names.find((n) => n.startsWith("photo-")) || names.find((n) => !n.startsWith("base"));
  if (!name) return;
  const image = element("img", "thumb");
  image.alt = "";
  image.src = await picture(previewPath(model, name));
  card.querySelector(".thumb").replaceWith(image);
}

function makeCard(model) {
  const card = element("button", "card");
  card.type = "button";
  card.dataset.id = model.id;
  card.setAttribute("role", "radio");
  const letter = element("span", "thumb", model.id[0].toUpperCase());
  letter.setAttribute("aria-hidden", "true");
  const noun = model.dbray.class_noun || "untouched";
  card.append(letter, element("span", "name", model.id), element("span", "noun", noun));
  const score = scoreOf(model, $("sort").value);
  if (score) card.append(element("span", "score", score));
  card.addEventListener("click", () => onChoose(model.id));
  if (model.id !== "base") sight.observe(card);
  return card;
}

// Lists from the beginning, or goes on; the server filters, for it alone knows all models. Returns
// the ids on the page, or null where a newer list was begun meanwhile.
export async function list(isNew = true) {
  const own = isNew ? ++listing : listing;
  const wanted = encodeURIComponent($("filter").value.trim());
  const after = encodeURIComponent(isNew ? "" : last);
  const sort = $("sort").value;
  const order = sort ? `&sort=${sort}` : "";
  const page = await getJson(`/v1/models?limit=${PAGE}&after=${after}&contains=${wanted}${order}`);
  if (own !== listing) return null;
  if (isNew) {
    for (const card of $("models").children) sight.unobserve(card);
    $("models").replaceChildren();
  }
  $("models").append(...page.data.map(makeCard));
  last = page.data.at(-1)?.id ?? "";
  $("more").hidden = !page.has_more;
  const cards = [...$("models").children];
  $("no-models").hidden = cards.length > 0;
  mark(chosen);
  return cards.map((card) => card.dataset.id);
}

// One card at least can be reached with the Tab key, also when the chosen one is filtered out.
export function mark(id) {
  chosen = id;
  const cards = [...$("models").children];
  for (const card of cards) {
    const isChosen = card.dataset.id === id;
    card.setAttribute("aria-checked", String(isChosen));
    card.tabIndex = isChosen ? 0 : -1;
  }
  if (cards.length && !cards.some((card) => card.tabIndex === 0)) cards[0].tabIndex = 0;
}

function moveChoice(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const cards = [...$("models").children];
  const at = cards.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  const next = cards[(at + step + cards.length) % cards.length];
  next.focus();
  onChoose(next.dataset.id);
}

// `choose` is called with the id of a model, `fail` with the error of a list.
export function listen(choose, fail) {
  onChoose = choose;
  $("models").addEventListener("keydown", moveChoice);
  $("more").addEventListener("click", () => list(false).catch(fail));
  $("sort").addEventListener("change", () => list().catch(fail));
  $("filter").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => list().catch(fail), PAUSE_MS);
  });
}
