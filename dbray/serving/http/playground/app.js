// The page: a model, a prompt, and the images of both.

import { ApiError, getJson, key, picture, previewPath, toJson } from "./api.js";
import { $, element, say } from "./dom.js";
import { draw } from "./drawing.js";
import * as gallery from "./gallery.js";
import { showScores } from "./scores.js";
import { LIVING, SUITES } from "./suites.js";

const IDEAS = [
  "a photo of a {subject} on the beach",
  "a photo of a {subject} in the snow",
  "a painting of a {subject}",
  "a photo of a {subject} wearing a hat",
];
const NOUN = "dog"; // in prompts for the base, which has no {subject}

let chosen = null; // the model object of the server
let running = null; // AbortController of what is being drawn
let asked = ""; // the model that was asked for last: answers of others come too late

const isBase = () => chosen.id === "base";
const idea = (text) => (isBase() ? text.replaceAll("{subject}", NOUN) : text);

async function loadModels() {
  const ids = await gallery.list();
  if (ids?.length && !asked) await choose(ids[1] || ids[0]);
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
  gallery.mark(id);
  const about = chosen.dbray;
  $("studio-title").textContent = id;
  $("studio-about").textContent = about.revision
    ? `a ${about.class_noun}, revision ${about.revision}, ${about.trained_steps} steps on ${about.base}`
    : `the untouched base ${about.base}`;
  showScores(chosen, $("scores"), $("flags"));
  $("compare").disabled = isBase();
  $("about-subject").hidden = isBase();
  showIdeas();
  showPictures();
  showCurl();
  $("go").disabled = running !== null;
}

// The prompts to begin with: the page's own, or a suite's for the class noun.
function ideas() {
  const suite = SUITES[$("suite").value];
  const words = (chosen.dbray.class_noun || NOUN).toLowerCase().split(/[^a-z]+/).filter(Boolean);
  return suite ? (LIVING.has(words.at(-1)) ? suite.live : suite.objects) : IDEAS;
}

// A prompt of the page's own follows the choice; what somebody wrote stays.
function showIdeas() {
  const prompt = $("prompt");
  const own = IDEAS.find((text) => [text, text.replaceAll("{subject}", NOUN)].includes(prompt.value));
  if (own || !prompt.value) prompt.value = idea(own || IDEAS[0]);
  $("ideas").replaceChildren(...ideas().map((text) => {
    const chip = element("button", "", idea(text));
    chip.type = "button";
    chip.addEventListener("click", () => { prompt.value = idea(text); showCurl(); });
    return chip;
  }));
}

function showPictures() {
  const names = chosen.dbray.previews;
  $("photographs").replaceChildren();
  for (const name of names.filter((one) => one.startsWith("photo-"))) {
    const image = element("img");
    image.alt = `Photograph of ${chosen.id}`;
    $("photographs").append(image);
    show(image, image, name);
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
    show(figure, image, name);
  }
}

// A tile without its picture yet is not shown; one that gets none goes.
async function show(tile, image, name) {
  tile.hidden = true;
  try {
    image.src = await picture(previewPath(chosen, name));
    tile.hidden = false;
  } catch {
    tile.remove();
  }
}

function readForm() {
  const body = {
    model: chosen ? chosen.id : "base",
    prompt: $("prompt").value,
    n: Number($("n").value) || 1,
    seed: /^[0-9]+$/.test($("seed").value) ? $("seed").value : "0",
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
  const json = toJson(readForm()).replaceAll("'", "'\\''");
  const header = key.get() ? ` \\\n  -H "Authorization: Bearer $KEY"` : "";
  $("curl").textContent =
    `curl ${location.origin}/v1/images/generations${header} \\\n` +
    `  -H 'Content-Type: application/json' \\\n  -d '${json}'`;
}

async function run(submission) {
  submission.preventDefault();
  if (!chosen || running) return;
  running = new AbortController();
  const { signal } = running;
  const body = readForm();
  const compares = $("compare").checked && !isBase();
  busy(true);
  $("base-results").hidden = !compares;
  say("Drawing…");
  try {
    // With the model's name: they stay when another model is chosen.
    const drawing = [draw($("subject-results"), body, body.model, signal)];
    if (compares) {
      const title = `The untouched base, beside ${body.model}`;
      drawing.push(draw($("base-results"), forBase(body), title, signal));
    }
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

async function enter(submission) {
  submission.preventDefault();
  try {
    await key.set($("key").value.trim());
  } catch (error) {
    return fail(error);
  }
  $("key").value = "";
  $("key-form").hidden = true;
  say("");
  return loadModels().catch(fail);
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

$("suite").append(...Object.keys(SUITES).map((name) => {
  const option = element("option", "", name.replaceAll("-", " "));
  option.value = name;
  return option;
}));
$("suite").addEventListener("change", () => { if (chosen) showIdeas(); });
$("ask").addEventListener("submit", run);
$("ask").addEventListener("input", showCurl);
$("stop").addEventListener("click", () => running?.abort());
$("copy").addEventListener("click", copyCurl);
$("key-form").addEventListener("submit", enter);
gallery.listen(choose, fail);
loadModels().catch(fail);
