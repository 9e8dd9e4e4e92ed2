// A bar between two panels: dragged or moved by arrow keys, its place remembered. props: name, initial, min, max, side (1: panel lies before it, -1: after), axis.

import { h } from "./dom.js";
import { remember, remembered } from "./bus.js";

export function mount(element, { name, initial, min, max, side, axis, label }) {
  const across = axis === "x";
  const limit = () => Math.max(min, Math.min(max, (across ? innerWidth : innerHeight) * 0.6));
  let size = remembered(`split.${name}`, initial);
  const bar = h("div", { class: ["st-splitter", `is-${axis}`], role: "separator", tabIndex: 0, "aria-label": label, "aria-orientation": across ? "vertical" : "horizontal", "aria-valuemin": min, "aria-valuemax": max, title: "Drag to resize, double-click to reset" });
  const set = (value) => {
    size = Math.round(Math.max(min, Math.min(limit(), value)));
    document.documentElement.style.setProperty(`--st-${name}`, `${size}px`);
    bar.setAttribute("aria-valuenow", String(size));
  };
  const keep = () => remember(`split.${name}`, size);
  bar.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    bar.setPointerCapture(event.pointerId);
    const from = across ? event.clientX : event.clientY;
    const before = size;
    document.body.classList.add("st-resizing", `is-${axis}`);
    const move = (e) => set(before + side * ((across ? e.clientX : e.clientY) - from));
    const up = () => {
      bar.removeEventListener("pointermove", move);
      document.body.classList.remove("st-resizing", `is-${axis}`);
      keep();
    };
    bar.addEventListener("pointermove", move);
    bar.addEventListener("lostpointercapture", up, { once: true });
  });
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    set(size + side * step * (event.shiftKey ? 64 : 16));
    keep();
  });
  bar.addEventListener("dblclick", () => { set(initial); keep(); });
  element.replaceChildren(bar);
  set(size);
}
