// The page's behaviour: cards, viewer, search, filter, order, pages. Follows parts.js in one script.

const PAGE_SIZE = 40;
const PHOTOGRAPHS_SHOWN = 6;
const STATES = ["published", "kept", "failed", "unfinished", "waiting"];
const index = readBlock("index");
const subjects = index.subjects.map((subject, number) => ({ ...subject, number }));
const byId = new Map(subjects.map((subject) => [subject.id, subject]));
const $ = (id) => document.getElementById(id);
let listed = subjects;
let page = 0;

function readBlock(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

// ---- images

function picture(data, alt, attributes = {}) {
  const image = make("img", {
    alt, width: index.side, height: index.side, loading: "lazy", decoding: "async", ...attributes,
  });
  image.src = `data:image/webp;base64,${data}`;
  return image;
}

// Enlarged many times, an image of few pixels is clearer as squares than as a blur.
function large(data) {
  const image = picture(data, "", { loading: "eager" });
  image.addEventListener("load", () => {
    image.classList.toggle("tiny", image.naturalWidth <= 96);
  });
  return image;
}

function thumb(data, alt, open, tag, kind = "") {
  if (!data) return make("div", { class: `blank ${kind}` }, tag === "base" ? "no base image" : "no image");
  return make("button", { type: "button", class: `thumb ${kind}`, click: open },
    picture(data, alt), tag ? make("b", { "aria-hidden": "true" }, tag) : null);
}

function photographs(subject, data, slides) {
  const shown = data.photographs.slice(0, PHOTOGRAPHS_SHOWN);
  const hidden = data.photographs.length - shown.length;
  const list = shown.map((image, at) => {
    const tag = hidden && at === shown.length - 1 ? `+${hidden}` : null;
    const alt = `Photograph ${at + 1} of ${subject.id}`;
    return make("li", {}, thumb(image, alt, () => view(subject, slides, at), tag));
  });
  const missing = data.missing ? `${data.missing} cannot be read any more` : null;
  return make("section", { class: "photographs" },
    make("h4", {}, list.length ? "Photographs" : "No photographs"), make("ul", {}, ...list),
    missing && make("p", { class: "hint" }, missing));
}

function previews(subject, data, slides) {
  const first = data.photographs.length;
  const list = data.previews.map(([image, base, prompt, basePrompt], at) => {
    const open = () => view(subject, slides, first + at);
    return make("li", {}, make("figure", {},
      thumb(image, prompt, open),
      thumb(index.bases[base], `The base: ${basePrompt}`, open, "base", "base"),
      make("figcaption", {}, ...marked(prompt, subject.identifier))));
  });
  const grid = make("ul", {}, ...list);
  grid.style.setProperty("--prompts", list.length);
  return make("section", { class: "previews" },
    make("h4", {}, list.length ? "Previews, and below each the base at the same seed" : "Previews"),
    data.note && make("p", { class: "hint" }, data.note), grid);
}

function slidesOf(subject, data) {
  const shots = data.photographs.map((image, at) => [
    [image, [`Photograph ${at + 1} of ${data.photographs.length}`]],
  ]);
  const answers = data.previews.map(([image, base, prompt, basePrompt, seed]) => [
    [image, [`${subject.id}: `, ...marked(prompt, subject.identifier)]],
    [index.bases[base], [`base: ${basePrompt}${seed === null ? "" : `, seed ${seed}`}`]],
  ].filter(([content]) => content));
  return [...shots, ...answers];
}

function view(subject, slides, at) {
  const dialog = $("viewer");
  const step = (by) => view(subject, slides, (at + by + slides.length) % slides.length);
  const frames = slides[at].map(([image, caption]) => make("figure", {},
    large(image), make("figcaption", {}, ...caption)));
  const focused = document.activeElement && document.activeElement.dataset.step;
  dialog.className = "viewer";
  dialog.replaceChildren(make("div", { class: "frames" }, ...frames), make("nav", {},
    make("button", { type: "button", "data-step": "back", click: () => step(-1) }, "Back"),
    make("span", { role: "status" }, `${subject.id}, ${at + 1} of ${slides.length}`),
    make("button", { type: "button", "data-step": "next", click: () => step(1) }, "Next"),
    make("button", { type: "button", click: () => dialog.close() }, "Close")));
  dialog.onkeydown = (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  };
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  if (!dialog.open) dialog.showModal();
  dialog.querySelector(`[data-step="${focused || "next"}"]`).focus();
}

// ---- cards

function shell(subject) {
  const attempts = subject.attempts > 1 ? `${subject.attempts} attempts` : null;
  const seconds = subject.seconds ? duration(subject.seconds) : null;
  const noun = subject.noun === "none" ? "" : subject.noun;
  const label = [subject.identifier, noun].filter(Boolean).join(" ");
  return make("article", { class: "card", id: `subject-${subject.id}`, tabindex: -1 },
    make("header", {},
      make("h3", {}, make("a", { href: `#subject-${subject.id}` }, subject.id)),
      make("code", {}, ...marked(label, subject.identifier)),
      make("span", { class: `state ${subject.status}` }, subject.status),
      make("span", { class: "aside" }, [attempts, seconds].filter(Boolean).join(", "))));
}

function fill(card, subject) {
  if (card.dataset.filled) return;
  card.dataset.filled = "yes";
  if (!$(`data-${subject.number}`)) {
    card.append(listedOnly(subject));
    return;
  }
  const data = readBlock(`data-${subject.number}`);
  const slides = slidesOf(subject, data);
  const body = make("div", { class: "body" }, photographs(subject, data, slides));
  if (data.previews.length || data.note) body.append(previews(subject, data, slides));
  if (data.scores.length) body.append(scored(data));
  if (data.flags.length) body.append(flags(data));
  if (subject.error) body.append(failure(subject));
  const numbers = [["Loss", lossChart(data.loss, data.steps)],
    ["Fidelity", fidelityChart(data.fidelity, data.steps, data.published)],
    ["Time", phaseBar(index.phases, data.timings, `Time of ${subject.id} by phase`)]]
    .filter(([, chart]) => chart)
    .map(([title, chart]) => make("div", {}, make("h4", {}, title), ...chart));
  if (numbers.length) body.append(make("section", { class: "numbers" }, ...numbers));
  card.append(body);
  if (data.facts.length) card.append(details(data));
}

function scored(data) {
  return make("dl", { class: "scored" }, ...data.scores.map(([name, value, note, meaning]) =>
    make("div", { title: meaning }, make("dt", {}, name),
      make("dd", {}, value, make("small", {}, note)))));
}

function flags(data) {
  return make("ul", { class: "flags" }, ...data.flags.map(([words, evidence, fix]) =>
    make("li", {}, make("strong", {}, words), make("span", {}, ` ${evidence}. To try: ${fix}.`))));
}

// Of a very large job, most subjects have no data in the page.
function listedOnly(subject) {
  return make("div", { class: "body" }, subject.error ? failure(subject)
    : make("p", { class: "hint" }, `Not in this page: dbray models show ${subject.id}`));
}

function failure(subject) {
  const [kind, message, retryable] = subject.error;
  return make("section", { class: "error" }, make("h4", {}, kind), make("pre", {}, message),
    make("p", { class: "hint" }, retryable ? "Trying again may help." : "Unchanged, it would fail again."));
}

function details(data) {
  const rows = (pairs) => make("dl", {}, ...pairs.map(([name, value, set]) => make("div", {},
    make("dt", {}, name), make("dd", { class: set ? "set" : null }, value))));
  const lines = data.commands.flatMap(([name, line]) => [make("h4", {}, name), command(line)]);
  return make("details", {}, make("summary", {}, "Commands, recipe and origin"),
    make("div", { class: "more" },
      make("div", { class: "wide" }, ...lines),
      make("div", {}, make("h4", {}, "Recipe (bold: not dbray's default)"), rows(index.recipes[data.recipe])),
      make("div", {}, make("h4", {}, "Origin"), rows(data.facts))));
}

const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    nearby.unobserve(entry.target);
    fill(entry.target, byId.get(entry.target.id.slice("subject-".length)));
  }
}, { rootMargin: "800px 0px" });

// ---- search, filter, sort, pages

function list() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = document.querySelector("#status input:checked").value;
  const noun = $("noun").value;
  const text = (subject) => [subject.id, subject.noun, subject.identifier || "",
    ...(subject.error || []).slice(0, 2)].join(" ").toLowerCase();
  listed = subjects.filter((subject) => (!status || subject.status === status)
    && (!noun || subject.noun === noun)
    && words.every((word) => text(subject).includes(word)));
  const lowest = (value) => (value === null ? -Infinity : value);
  const orders = {
    manifest: () => 0,
    id: (a, b) => a.id.localeCompare(b.id),
    noun: (a, b) => a.noun.localeCompare(b.noun),
    status: (a, b) => rank(a) - rank(b),
    seconds: (a, b) => lowest(b.seconds) - lowest(a.seconds),
    loss: (a, b) => lowest(b.loss) - lowest(a.loss),
  };
  const rank = (subject) => ["failed", "unfinished", "waiting"].indexOf(subject.status) + 1 || 9;
  const order = orders[$("order").value] || byScore($("order").value.split(" ")[1]);
  listed.sort((a, b) => order(a, b) || a.number - b.number);
}

// The worst first; subjects without the score last.
function byScore(name) {
  const sign = index.high.includes(name) ? 1 : -1;
  const value = (subject) => {
    const score = subject.scores && subject.scores[name];
    return score === null || score === undefined ? Infinity : sign * score;
  };
  return (a, b) => (value(a) === value(b) ? 0 : value(a) - value(b));
}

function show(number) {
  const last = Math.max(0, Math.ceil(listed.length / PAGE_SIZE) - 1);
  page = Math.min(Math.max(0, number), last);
  const start = page * PAGE_SIZE;
  const visible = listed.slice(start, start + PAGE_SIZE);
  nearby.disconnect();
  const cards = visible.map(shell);
  $("cards").replaceChildren(...cards);
  cards.forEach((card) => nearby.observe(card));
  const total = listed.length.toLocaleString("en");
  $("shown").textContent = !listed.length ? "No subject matches."
    : last ? `${start + 1} to ${start + visible.length} of ${total} subjects`
    : `${total} subject${listed.length === 1 ? "" : "s"}`;
  for (const pager of document.querySelectorAll(".pager")) {
    pager.replaceChildren(...(last ? pagerParts(last) : []));
  }
}

function pagerParts(last) {
  const turn = (name, arrow, by) => make("button", {
    type: "button", "aria-label": `${name} page`, disabled: page + by < 0 || page + by > last,
    click: (event) => {
      const bottom = event.target.closest(".bottom");
      show(page + by);
      if (bottom) $("subjects").scrollIntoView();
    },
  }, arrow);
  const place = make("span", {}, `${page + 1} / ${last + 1}`);
  return [turn("Previous", "\u2190", -1), place, turn("Next", "\u2192", 1)];
}

function update() {
  list();
  show(0);
}

function options() {
  const counts = (key) => subjects.reduce(
    (all, subject) => all.set(subject[key], (all.get(subject[key]) || 0) + 1), new Map());
  const nouns = [...counts("noun")].sort((a, b) => a[0].localeCompare(b[0]));
  $("noun").append(make("option", { value: "" }, "All class nouns"),
    ...nouns.map(([noun, count]) => make("option", { value: noun }, `${noun} (${count})`)));
  const states = counts("status");
  const choices = [["", "All", subjects.length],
    ...STATES.filter((state) => states.has(state)).map((state) => [state, state, states.get(state)])];
  $("status").append(...choices.map(([value, name, count], at) => make("label", {},
    make("input", { type: "radio", name: "status", value, checked: at === 0 }),
    name, make("span", {}, count.toLocaleString("en")))));
}

function reset() {
  $("toolbar").reset();
  list();
}

// A link to a subject turns to its page, whatever is filtered.
function follow() {
  const subject = byId.get(decodeURIComponent(location.hash).replace(/^#subject-/, ""));
  if (!subject || !location.hash.startsWith("#subject-")) return;
  if (!listed.includes(subject)) reset();
  const at = Math.floor(listed.indexOf(subject) / PAGE_SIZE);
  if (at !== page || !$(`subject-${subject.id}`)) show(at);
  const card = $(`subject-${subject.id}`);
  document.querySelectorAll(".found").forEach((other) => other.classList.remove("found"));
  card.classList.add("found");
  fill(card, subject);
  card.focus({ preventScroll: true });
  card.scrollIntoView();
  // The cards above it are filled now and grow; then it has moved.
  requestAnimationFrame(() => requestAnimationFrame(() => card.scrollIntoView()));
}

function start() {
  const phases = phaseBar(index.phases, index.phase_seconds, "Time by phase");
  if (phases) {
    $("phases").append(make("h4", {}, "Time by phase"), ...phases);
    $("phases").hidden = false;
  }
  for (const box of document.querySelectorAll(".retry .command")) {
    box.append(copyButton(box.textContent));
  }
  for (const button of document.querySelectorAll("[data-cause]")) {
    button.addEventListener("click", () => {
      $("toolbar").reset();
      $("search").value = button.dataset.cause;
      update();
      $("subjects").scrollIntoView();
    });
  }
  options();
  $("toolbar").addEventListener("submit", (event) => event.preventDefault());
  $("toolbar").addEventListener("input", (event) => {
    if (event.target.id === "sheet") document.body.classList.toggle("sheet", event.target.checked);
    else update();
  });
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, select, dialog")) return;
    event.preventDefault();
    $("search").focus();
  });
  update();
  follow();
}

start();
