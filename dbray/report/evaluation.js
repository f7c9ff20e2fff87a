"use strict";
// Sorts the table of all models by the heading that is chosen; a second choice reverses.

const table = document.querySelector("#all-title ~ .wide table");
const headings = [...table.tHead.rows[0].cells];

function sortBy(at) {
  const heading = headings[at];
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  const value = (row) => {
    const text = row.cells[at].textContent.trim();
    const number = Number(text);
    return text === "-" ? Infinity : Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b)));
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (ascending ? 1 : -1) * compare(value(a), value(b)));
  table.tBodies[0].append(...rows);
  for (const other of headings) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}

headings.forEach((heading, at) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sortBy(at));
  heading.append(button);
});
