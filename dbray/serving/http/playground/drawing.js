// Images as they arrive: a tile for each, until the last one is there or the drawing has failed.

import { stream } from "./api.js";
import { element } from "./dom.js";

// As text: seeds go up to 2^63, and numbers here are exact up to 2^53 only.
const seedOf = (body, index) => String(BigInt(body.seed) + BigInt(index));

function makeTiles(section, body, title) {
  section.querySelector("h3").textContent = title;
  const tiles = Array.from({ length: body.n }, (_, index) => {
    const tile = element("figure");
    tile.dataset.state = "waiting";
    tile.append(element("div", "blank"), element("figcaption", "", `seed ${seedOf(body, index)}`));
    return tile;
  });
  section.querySelector(".images").replaceChildren(...tiles);
  section.hidden = false;
  return tiles;
}

function fill(tile, event, body) {
  const image = element("img");
  image.alt = `${body.model}: ${body.prompt}, seed ${seedOf(body, event.index)}`;
  image.src = `data:image/${event.output_format};base64,${event.b64_json}`;
  tile.firstChild.replaceWith(image);
  tile.dataset.state = event.type.endsWith("completed") ? "completed" : "partial";
}

// Draws into a section; resolves with the headers of the answer.
export async function draw(section, body, title, signal) {
  const tiles = makeTiles(section, body, title);
  try {
    return await stream({ ...body, partial_images: 3 }, (event) => {
      fill(tiles[event.index], event, body);
    }, signal);
  } finally {
    const unfinished = tiles.filter((tile) => tile.dataset.state !== "completed");
    for (const tile of unfinished) tile.remove();
    section.hidden = unfinished.length === tiles.length;
  }
}
