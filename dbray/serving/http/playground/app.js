// The page: a gallery to choose from, a prompt, and the images as they arrive.

import { ApiError, getJson, key, picture, stream } from "./api.js";

const $ = (id) => document.getElementById(id);
const IDEAS = [
  "a photo of a {subject} on the beach",
  "a photo of a {subject} in the snow",
  "a painting of a {subject}",
  "a photo of a {subject} wearing a hat",
];
const PAGE = 100;
const PAUSE_MS = 250; // in typing; the server may go through its whole storage for a list

let chosen = null; // the model object of the server
let last = ""; // id of the last model listed
let running = null; // AbortController of what is being drawn
let asked = ""; // the model that was asked for last: answers of others come too late
let typing = 0; // the timer that runs while somebody types
let listing = 0; // counts lists that were begun: pages of older ones come too late

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text; // never innerHTML: users wrote it
  return node;
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

// With the revision, so that what a browser has kept is never that of another one.
const previewPath = (model, name) => {
  const revision = encodeURIComponent(`${model.id}@${model.dbray.revision}`);
  return `/v1/models/${revision}/previews/${encodeURIComponent(name)}`;
};

async function show(image, path) {
  try {
    image.src = await picture(path);
  } catch {
    image.remove();
  }
}

// Thumbnails are fetched when their card comes into sight: a registry may hold thousands.
const sight = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    sight.unobserve(target);
    addThumbnail(target).catch(() => {});
  }
});

async function addThumbnail(card) {
  const model = await getJson(`/v1/models/${encodeURIComponent(card.dataset.id)}`);
  const names = model.dbray.previews;
  const name = names.find((n) => n.startsWith("photo-")) || names.find((n) => !n.startsWith("base"));
  if (!name) return;
  const image = element("img", "thumb");
  image.alt = "";
  await show(image, previewPath(model, name));
  if (image.src) card.querySelector(".thumb").replaceWith(image);
}

function makeCard(model) {
  const card = element("button", "card");
  card.type = "button";
  card.dataset.id = model.id;
  card.setAttribute("role", "radio");
  card.setAttribute("aria-checked", "false");
  card.tabIndex = -1;
  card.append(
    element("span", "thumb"),
    element("span", "name", model.id),
    element("span", "noun", model.dbray.class_noun || "untouched"),
  );
  card.addEventListener("click", () => choose(model.id));
  if (model.id !== "base") sight.observe(card);
  return card;
}

// The server filters: only it knows the models that are not on the page yet.
async function loadModels(isNew = true) {
  const own = isNew ? ++listing : listing;
  const wanted = encodeURIComponent($("filter").value.trim());
  const after = encodeURIComponent(isNew ? "" : last);
  const page = await getJson(`/v1/models?limit=${PAGE}&after=${after}&contains=${wanted}`);
  if (own !== listing) return;
  if (isNew) {
    for (const card of $("models").children) sight.unobserve(card);
    $("models").replaceChildren();
  }
  for (const model of page.data) $("models").append(makeCard(model));
  last = page.data.at(-1)?.id ?? "";
  $("more").hidden = !page.has_more;
  const cards = [...$("models").children];
  $("no-models").hidden = cards.length > 0;
  if (!asked && cards.length) await choose((cards[1] || cards[0]).dataset.id);
  else markChosen();
}

// One card at least can be reached with the Tab key, also when the chosen one is filtered out.
function markChosen() {
  const cards = [...$("models").children];
  for (const card of cards) {
    const isChosen = card.dataset.id === chosen?.id;
    card.setAttribute("aria-checked", String(isChosen));
    card.tabIndex = isChosen ? 0 : -1;
  }
  if (cards.length && !cards.some((card) => card.tabIndex === 0)) cards[0].tabIndex = 0;
}

async function choose(id) {
  asked = id;
  let model;
  try {
    model = await getJson(`/v1/models/${encodeURIComponent(id)}`);
  } catch (error) {
    return fail(error);
  }
  if (asked !== id) return; // another was chosen meanwhile
  chosen = model;
  markChosen();
  const about = chosen.dbray;
  $("studio-title").textContent = id;
  $("studio-about").textContent = about.revision
    ? `a ${about.class_noun}, revision ${about.revision}, ${about.trained_steps} steps on ${about.base}`
    : `the untouched base ${about.base}`;
  $("compare").disabled = !about.revision;
  showPictures();
  showCurl();
  $("go").disabled = running !== null;
}

function showPictures() {
  const names = chosen.dbray.previews;
  const photographs = names.filter((name) => name.startsWith("photo-"));
  $("photographs").replaceChildren();
  for (const name of photographs) {
    const image = element("img");
    image.alt = `Photograph of ${chosen.id}`;
    $("photographs").append(image);
    show(image, previewPath(chosen, name));
  }
  const previews = names.filter((name) => /^[0-9]+\.png$/.test(name));
  previews.sort((a, b) => parseInt(a) - parseInt(b));
  $("previews-section").hidden = !previews.length;
  $("previews").replaceChildren();
  for (const name of previews) {
    const figure = element("figure");
    const image = element("img");
    const prompt = chosen.dbray.preview_prompts[parseInt(name)] || "";
    image.alt = prompt || `Preview of ${chosen.id}`;
    figure.append(image, element("figcaption", "", prompt));
    $("previews").append(figure);
    show(image, previewPath(chosen, name));
  }
}

function readForm() {
  const body = {
    model: chosen ? chosen.id : "base",
    prompt: $("prompt").value,
    n: Number($("n").value) || 1,
    seed: Number($("seed").value) || 0,
  };
  if ($("steps").value) body.num_inference_steps = Number($("steps").value);
  if ($("guidance").value) body.guidance_scale = Number($("guidance").value);
  return body;
}

// The base has no {subject}: it is asked for the class noun, at the same seed and size.
function forBase(body) {
  const noun = chosen.dbray.class_noun || "";
  const prompt = body.prompt.replaceAll("{subject}", noun).replaceAll("{class}", noun);
  const side = chosen.dbray.resolution;
  return { ...body, model: "base", prompt, ...(side && { size: `${side}x${side}` }) };
}

function showCurl() {
  const json = JSON.stringify(readForm()).replaceAll("'", "'\\''");
  const header = key.get() ? ` \\\n  -H "Authorization: Bearer $KEY"` : "";
  $("curl").textContent =
    `curl ${location.origin}/v1/images/generations${header} \\\n` +
    `  -H 'Content-Type: application/json' \\\n  -d '${json}'`;
}

function makeFigures(section, body) {
  section.hidden = false;
  const figures = Array.from({ length: body.n }, (_, index) => {
    const figure = element("figure");
    figure.dataset.state = "waiting";
    figure.append(element("div", "blank"), element("figcaption", "", `seed ${body.seed + index}`));
    return figure;
  });
  section.querySelector(".images").replaceChildren(...figures);
  return figures;
}

async function draw(section, body, signal) {
  const figures = makeFigures(section, body);
  return stream({ ...body, partial_images: 3 }, (event) => {
    const figure = figures[event.index];
    const image = element("img");
    image.alt = `${body.model}: ${body.prompt}, seed ${event.seed}`;
    image.src = `data:image/${event.output_format};base64,${event.b64_json}`;
    figure.firstChild.replaceWith(image);
    figure.dataset.state = event.type.endsWith("completed") ? "completed" : "partial";
  }, signal);
}

async function run(submission) {
  submission.preventDefault();
  if (!chosen || running) return;
  running = new AbortController();
  const body = readForm();
  const compares = $("compare").checked && chosen.id !== "base";
  busy(true);
  $("base-results").hidden = !compares;
  say("Drawing…");
  try {
    const drawing = [draw($("subject-results"), body, running.signal)];
    if (compares) drawing.push(draw($("base-results"), forBase(body), running.signal));
    const [headers] = await Promise.all(drawing);
    const warning = headers.get("x-dbray-warning");
    const load = Math.round(Number(headers.get("x-dbray-load-ms")));
    say(`Weights from ${headers.get("x-dbray-cache")} in ${load} ms.` +
        (warning ? ` Note: ${warning}.` : ""));
  } catch (error) {
    running.abort();
    fail(error);
  } finally {
    running = null;
    busy(false);
  }
}

function busy(isBusy) {
  $("go").disabled = isBusy;
  $("stop").hidden = !isBusy;
  $("results").setAttribute("aria-busy", String(isBusy));
}

function fail(error) {
  if (error.name === "AbortError") return say("Stopped.");
  if (error instanceof ApiError && error.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
  }
  return say(error.message, true);
}

function moveChoice(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const cards = [...$("models").children];
  const at = cards.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  const next = cards[(at + step + cards.length) % cards.length];
  next.focus();
  choose(next.dataset.id);
}

async function copyCurl() {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("curl")); // no permission: ready for Ctrl+C
    $("copy").textContent = "Selected";
  }
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
}

for (const idea of IDEAS) {
  const chip = element("button", "", idea);
  chip.type = "button";
  chip.addEventListener("click", () => { $("prompt").value = idea; showCurl(); });
  $("ideas").append(chip);
}
$("ask").addEventListener("submit", run);
$("ask").addEventListener("input", showCurl);
$("stop").addEventListener("click", () => running?.abort());
$("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => loadModels().catch(fail), PAUSE_MS);
});
$("models").addEventListener("keydown", moveChoice);
$("more").addEventListener("click", () => loadModels(false).catch(fail));
$("copy").addEventListener("click", copyCurl);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  say("");
  loadModels().catch(fail);
});
loadModels().catch(fail);
