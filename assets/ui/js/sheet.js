// A grid large, over everything: labels stay at the edges, the wheel zooms, a drag moves, a click chooses a cell.

import * as api from "./api.js";
import { button, h } from "./dom.js";
import { select } from "./images.js";
import { recallPicture } from "./recall.js";
import { failed } from "./toasts.js";

const SIDES = [64, 1024];

const title = (axis, value) => (["prompt", "negative_prompt", "lora"].includes(axis.kind) ? value : `${axis.kind.replaceAll("_", " ")} ${value}`);

async function pictures(job) {
  const found = new Map();
  let before = "";
  for (;;) {
    const { items } = await api.get(`/images?limit=200&job=${api.id(job)}${before ? `&before=${api.id(before)}` : ""}`);
    for (const item of items) found.set(Number(item.id.split("-").pop()), item);
    if (items.length < 200) return found;
    before = items.at(-1).id;
  }
}

export async function openSheet(job) {
  let found;
  try {
    found = await pictures(job.id);
  } catch (error) {
    failed("The grid could not be read")(error);
    return;
  }
  const axes = job.settings.grid;
  const [columns, rows, layers] = [0, 1, 2].map((i) => axes[i]?.values ?? [""]);
  let side = Math.max(SIDES[0], Math.min(320, Math.floor((innerWidth - 220) / columns.length) - 6));
  const table = h("div", { class: "st-sheet", role: "table", "aria-label": "Grid", style: { "--columns": columns.length } });
  const chosen = h("span", { class: "st-dim" });
  const recall = button("Recall", { kind: "small primary", symbol: "recall", reason: "Choose a picture first", act: () => { node.close(); recallPicture(current.id); } });
  const full = button("The sheet as a file", { kind: "small", symbol: "download", act: () => window.open(`/api/jobs/${api.id(job.id)}/files/grid.png`, "_blank") });
  full.hidden = job.state !== "finished";
  const board = h("div", { class: "st-sheet-board", tabIndex: 0 }, table);
  const node = h("dialog", { class: "st-lightbox is-sheet", "aria-label": "Grid" }, h("header", {}, h("b", {}, "Grid"), chosen, h("span", { class: "st-spring" }), button("Smaller", { kind: "icon quiet", symbol: "minus", title: "Smaller  ·  -", act: () => zoom(0.8) }), button("Larger", { kind: "icon quiet", symbol: "plus", title: "Larger  ·  +", act: () => zoom(1.25) }), full, recall, button("Close", { kind: "icon quiet", symbol: "close", act: () => node.close() })), board);
  let current = null;
  const choose = (item, cell, words) => {
    current = item;
    table.querySelector("[aria-selected=true]")?.removeAttribute("aria-selected");
    cell.setAttribute("aria-selected", "true");
    chosen.textContent = words;
    recall.removeAttribute("aria-disabled");
    recall.title = "All settings of this picture back into the form";
    select(item.id);
  };
  layers.forEach((layer, z) => {
    if (axes[2]) table.append(h("h4", { class: "st-sheet-layer" }, title(axes[2], layer)));
    table.append(h("span", { class: "st-sheet-corner" }), ...columns.map((value) => h("b", { class: "st-sheet-top", role: "columnheader" }, axes[0] ? title(axes[0], value) : "")));
    rows.forEach((value, y) => {
      table.append(h("b", { class: "st-sheet-side", role: "rowheader" }, axes[1] ? title(axes[1], value) : ""));
      columns.forEach((column, x) => {
        const item = found.get((z * rows.length + y) * columns.length + x);
        const words = [axes[0] && title(axes[0], column), axes[1] && title(axes[1], value), axes[2] && title(axes[2], layer)].filter(Boolean).join(" · ");
        const cell = h("button", { type: "button", class: "st-sheet-cell", title: words, "aria-label": words });
        if (item) {
          cell.append(h("img", { src: item.width > 512 ? `${item.thumbnail}?side=512` : item.url, alt: "", loading: "lazy", decoding: "async", draggable: "false" }));
          cell.addEventListener("click", () => moved < 5 && choose(item, cell, words));
        }
        table.append(cell);
      });
    });
  });
  const zoom = (factor) => { side = Math.max(SIDES[0], Math.min(SIDES[1], side * factor)); table.style.setProperty("--side", `${side}px`); };
  board.addEventListener("wheel", (event) => {
    event.preventDefault();
    const before = side;
    const [x, y] = [board.scrollLeft + event.clientX - board.getBoundingClientRect().left, board.scrollTop + event.clientY - board.getBoundingClientRect().top];
    zoom(Math.exp(-event.deltaY / 500));
    board.scrollLeft += x * (side / before - 1);
    board.scrollTop += y * (side / before - 1);
  }, { passive: false });
  let moved = 0;
  let from = null;
  board.addEventListener("pointerdown", (event) => { from = { x: event.clientX, y: event.clientY, left: board.scrollLeft, top: board.scrollTop }; moved = 0; });
  board.addEventListener("pointermove", (event) => {
    if (!from || !event.buttons) return;
    moved = Math.max(moved, Math.hypot(event.clientX - from.x, event.clientY - from.y));
    board.scrollLeft = from.left - (event.clientX - from.x);
    board.scrollTop = from.top - (event.clientY - from.y);
  });
  node.addEventListener("keydown", (event) => { const by = { "+": 1.25, "=": 1.25, "-": 0.8 }[event.key]; if (by) { event.preventDefault(); zoom(by); } });
  node.addEventListener("close", () => node.remove());
  document.body.append(node);
  zoom(1);
  node.showModal();
}
