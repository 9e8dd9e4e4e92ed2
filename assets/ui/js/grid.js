// A grid of any length with few nodes: cards outside the view are used again. Cards have one fixed height.

import { h } from "./dom.js";

const GAP = 14;
const SPARE_ROWS = 2;

// make() gives a card, fill(card, item) writes an item into it; only textContent and attributes there.
export function grid({ width, ratio, foot, label, make, fill }) {
  const field = h("div", { class: "st-grid-field", role: "list", "aria-label": label });
  const node = h("div", { class: "st-grid", tabIndex: -1 }, field);
  let items = [];
  let live = new Map();
  let asked = false;

  function draw() {
    asked = false;
    const room = node.clientWidth - 2 * GAP;
    if (room <= 0) return;
    const columns = Math.max(1, Math.floor((room + GAP) / (width + GAP)));
    const side = (room - (columns - 1) * GAP) / columns;
    const tall = Math.round(side * ratio + foot);
    const rows = Math.ceil(items.length / columns);
    field.style.height = `${rows * (tall + GAP) + GAP}px`;
    const first = Math.max(0, Math.floor(node.scrollTop / (tall + GAP)) - SPARE_ROWS);
    const last = Math.ceil((node.scrollTop + node.clientHeight) / (tall + GAP)) + SPARE_ROWS;
    const wanted = items.slice(first * columns, last * columns);
    const free = [];
    const next = new Map();
    const ids = new Set(wanted.map((item) => item.id));
    for (const [id, card] of live) if (!ids.has(id)) free.push(card);
    wanted.forEach((item, i) => {
      const card = live.get(item.id) ?? free.pop() ?? field.appendChild(make());
      const at = first * columns + i;
      card.style.transform = `translate(${GAP + (at % columns) * (side + GAP)}px, ${GAP + Math.floor(at / columns) * (tall + GAP)}px)`;
      card.style.width = `${side}px`;
      card.style.height = `${tall}px`;
      card.dataset.id = item.id;
      fill(card, item);
      next.set(item.id, card);
    });
    free.forEach((card) => card.remove());
    live = next;
  }

  const redraw = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };
  node.addEventListener("scroll", redraw, { passive: true });
  new ResizeObserver(redraw).observe(node);
  return {
    node,
    set(list) { items = list; redraw(); },
    redraw,
  };
}
