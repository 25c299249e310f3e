// Tables: sorted by a click on a column's head, filtered by a text, and short at first.
(() => {
"use strict";
const FIRST = 20;
const key = (text) => {
  const cleaned = text.replace(/−/g, "-").replace(/,(?=\d{3})/g, "").split(" ±")[0];
  const value = Number(cleaned);
  return cleaned !== "" && Number.isFinite(value) ? value : null;
};

function compare(a, b) {
  if (a.number !== null && b.number !== null) return a.number - b.number;
  if (a.number !== null || b.number !== null) return a.number !== null ? -1 : 1;
  return a.text.localeCompare(b.text);
}

for (const holder of document.querySelectorAll(".table")) {
  const table = holder.querySelector("table");
  const body = table.tBodies[0];
  let rows = [...body.rows];
  if (rows.length < 4) continue;
  const original = rows;
  const long = rows.length > FIRST;
  let all = !long;
  let wanted = [];

  const tools = document.createElement("div");
  tools.className = "tools";
  const state = document.createElement("span");
  state.setAttribute("role", "status");
  const more = document.createElement("button");
  more.type = "button";

  function update() {
    let shown = 0, found = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = wanted.every((word) => text.includes(word));
      found += fits;
      row.hidden = !fits || (!all && shown >= FIRST);
      shown += !row.hidden;
    }
    state.textContent = `${shown} of ${found} rows shown` +
      (wanted.length ? ` (${rows.length} in all)` : "");
    more.hidden = found <= FIRST;
    more.textContent = all ? `Show the first ${FIRST}` : "Show all";
  }

  if (long) {
    const label = document.createElement("label");
    label.textContent = "Filter ";
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "words that a row must hold";
    field.addEventListener("input", () => {
      wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      update();
    });
    label.append(field);
    more.addEventListener("click", () => { all = !all; update(); });
    tools.append(label, state, more);
    holder.prepend(tools);
    const caption = holder.querySelector(".hint");
    if (caption) caption.hidden = true;
  }

  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    const arrow = document.createElement("span");
    arrow.className = "arrow";
    arrow.setAttribute("aria-hidden", "true");
    button.append(arrow);
    cell.append(button);
    button.addEventListener("click", () => {
      const was = cell.getAttribute("aria-sort");
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      const next = was === "ascending" ? "descending" : was === "descending" ? "" : "ascending";
      if (!next) rows = original; // as the page had them
      else {
        cell.setAttribute("aria-sort", next);
        const keyed = original.map((row) => {
          const text = row.cells[column].textContent;
          return { row, text, number: key(text), empty: text === "–" };
        });
        keyed.sort((a, b) => (a.empty - b.empty) || (next === "ascending" ? 1 : -1) * compare(a, b));
        rows = keyed.map(({ row }) => row);
      }
      body.append(...rows);
      update();
    });
  });
  if (long) update();
}
})();
