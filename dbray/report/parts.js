"use strict";
// Elements, words and charts: what the page is built from. What users wrote reaches the page only as
// text nodes and attribute values: there is no innerHTML here, and there must not be.

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// ---- words and numbers

function duration(seconds) {
  if (seconds < 10) return `${Number(seconds.toPrecision(2))} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

// The prompt with the identifier picked out, which is all that the base's prompt lacks.
function marked(prompt, identifier) {
  const at = identifier ? prompt.indexOf(identifier) : -1;
  if (at < 0) return [prompt];
  const end = at + identifier.length;
  return [prompt.slice(0, at), make("mark", {}, identifier), prompt.slice(end)];
}

function copyButton(text) {
  const button = make("button", { type: "button", click: copy }, "Copy");
  async function copy() {
    button.textContent = (await toClipboard(text)) ? "Copied" : "Not copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  }
  return button;
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Some browsers have no clipboard for pages opened from disk.
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function command(text) {
  return make("div", { class: "command" }, make("code", { tabindex: 0 }, text), copyButton(text));
}

// ---- charts

// `phases` are pairs of a name and the number of its colour.
function phaseBar(phases, seconds, label) {
  const entries = phases.map(([name, colour]) => [name, seconds[name] || 0, colour])
    .filter(([, value]) => value > 0);
  const total = entries.reduce((sum, [, value]) => sum + value, 0);
  if (!total) return null;
  const bar = draw("svg", {
    class: "bar", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img",
    "aria-label": label,
  });
  const legend = make("ul", { class: "legend" });
  let x = 0;
  for (const [name, value, colour] of entries) {
    const width = (value / total) * 1000;
    const text = `${name} ${duration(value)}`;
    const part = { class: `p${colour}`, x, width: Math.max(0, width - 2), height: 10 };
    bar.append(draw("rect", part, draw("title", {}, text)));
    legend.append(make("li", {}, make("i", { class: `p${colour}` }), `${name} `,
      make("span", {}, duration(value))));
    x += width;
  }
  return [bar, legend];
}

// An exponential mean over about an eighth of the curve, right from its first point.
function smooth(values) {
  const keep = Math.exp(-8 / Math.max(8, values.length));
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = keep * sum + value;
    weight = keep * weight + 1;
    return sum / weight;
  });
}

// An empty chart of steps up to `last` and values up to `top`, and what puts points into it.
function frame(last, top) {
  const width = 280, height = 96, left = 34, bottom = 16;
  const x = (step) => (left + ((width - left) * step) / Math.max(1, last)).toFixed(1);
  const y = (value) => ((height - bottom) * (1 - Math.min(1, value / top)) + 2).toFixed(1);
  const path = (pairs) => `M${pairs.map(([step, value]) => `${x(step)} ${y(value)}`).join("L")}`;
  const chart = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const value of [0, top]) {
    chart.append(draw("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }));
    chart.append(draw("text", { x: left - 5, y: Number(y(value)) + 3.5, "text-anchor": "end" },
      String(Number(value.toPrecision(2)))));
  }
  chart.append(draw("text", { x: width, y: height - 1, "text-anchor": "end" }, `${last} steps`));
  return { chart, x, y, path };
}

// Identity and drift at every measurement; a line marks the checkpoint that is published.
function fidelityChart(points, last, published) {
  if (!points.length) return null;
  const top = Math.max(...points.flatMap(([, identity, drift]) => [identity, drift])) * 1.1 || 1;
  const { chart, x, y, path } = frame(last, top);
  const at = points.find(([step]) => step === published) || points[points.length - 1];
  chart.append(draw("line", { class: "mark", x1: x(at[0]), x2: x(at[0]), y1: y(top), y2: y(0) }));
  const legend = make("ul", { class: "legend" });
  for (const [name, column, colour] of [["identity", 1, "p4"], ["drift", 2, "p6"]]) {
    const pairs = points.filter((point) => point[column] !== null)
      .map((point) => [point[0], Math.max(0, point[column])]);
    if (!pairs.length) continue;
    chart.append(draw("path", { class: name, d: path(pairs) }));
    for (const [step, value] of pairs) {
      chart.append(draw("circle", { class: colour, cx: x(step), cy: y(value), r: 2 }));
    }
    legend.append(make("li", {}, make("i", { class: colour }), `${name} `,
      make("span", {}, String(at[column]))));
  }
  legend.append(make("li", {}, `step ${at[0]} is published`));
  chart.setAttribute("aria-label", `Fidelity over ${last} steps. ${legend.textContent}`);
  return [chart, legend];
}

function lossChart(points, last) {
  const series = [["instance", 2], ["prior", 3]].map(([name, column]) => ({
    name, points: points.filter((point) => point[column] !== null)
      .map((point) => [point[0], point[column]]),
  })).filter((line) => line.points.some(([, value]) => value !== 0));
  if (!series.length) return null;
  const values = series.flatMap((line) => line.points.map(([, value]) => value)).sort((a, b) => a - b);
  // Single steps at early timesteps tower over all others; they may leave the chart.
  const top = values[Math.floor(0.97 * (values.length - 1))] * 1.1 || 1;
  const { chart, path } = frame(last, top);
  const legend = make("ul", { class: "legend" });
  for (const line of series) {
    const smoothed = smooth(line.points.map(([, value]) => value));
    const end = Number(smoothed[smoothed.length - 1].toPrecision(3));
    chart.append(draw("path", { class: `raw ${line.name}`, d: path(line.points) }));
    chart.append(draw("path", {
      class: line.name, d: path(line.points.map(([step], at) => [step, smoothed[at]])),
    }));
    legend.append(make("li", {}, make("i", { class: line.name === "prior" ? "p6" : "p4" }),
      `${line.name} `, make("span", {}, String(end))));
  }
  chart.setAttribute("aria-label", `Loss over ${last} steps. ${legend.textContent}`);
  return [chart, legend];
}
