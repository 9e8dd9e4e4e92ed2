// Generate, foot of the form: the Generate button, and the chips for size and seed.

import { cellsOf, gridAxes } from "./axes.js";
import { on, say } from "./bus.js";
import { shown } from "./commands.js";
import { button, h, setReason } from "./dom.js";
import { call } from "./form.js";
import { selected } from "./images.js";
import { rowOfRun } from "./runs.js";
import { source } from "./source.js";
import { stack } from "./stack.js";
import { base } from "./state.js";
import { toast } from "./toasts.js";

const STEP_PATIENCE = 130000; // milliseconds: a run in the stack is copied at its next step, for which the studio waits two minutes
const SHAPES = [["1:1", 1, 1], ["4:3", 4, 3], ["3:4", 3, 4], ["3:2", 3, 2], ["2:3", 2, 3], ["16:9", 16, 9], ["9:16", 9, 16]];

// Sides of about the area of `side` squared, in multiples that every base takes.
export function sized(w, height, side) {
  const step = side >= 512 ? 64 : 16;
  const scale = Math.sqrt((side * side) / (w * height));
  return [w, height].map((part) => Math.max(64, Math.round((part * scale) / step) * step));
}

export function mountShapes(element) {
  let side = 1024;
  const chips = h("div", { class: "st-chips is-even", role: "group", "aria-label": "Shape" });
  const draw = () => chips.replaceChildren(...SHAPES.map(([label, w, height]) => {
    const [width, tall] = sized(w, height, side);
    const frame = h("i", { style: { width: `${12 * Math.sqrt(w / height)}px`, height: `${12 * Math.sqrt(height / w)}px` } });
    return h("button", { type: "button", class: "st-chip is-shape", title: `${width} × ${tall}`, on: { click: () => call("generate", "fill", { values: { width, height: tall } }) } }, frame, label);
  }));
  on("base-chosen", ({ form, habits }) => { if (form === "generate") { side = habits.width ?? 1024; draw(); } });
  element.replaceChildren(chips);
  draw();
}

export function mountSeed(element) {
  const last = button("Last seed", { kind: "small", symbol: "lock", title: "Keep the seed of the picture shown", act: () => { const item = selected(); if (item) call("generate", "fill", { values: { seed: item.seed } }); else toast("There is no picture yet"); } });
  const dice = button("New each time", { kind: "small", symbol: "dice", title: "Draw a seed for each run (-1)", act: () => call("generate", "fill", { values: { seed: -1 } }) });
  element.replaceChildren(h("div", { class: "st-seedbar" }, dice, last));
}

export function mount(element) {
  const why = h("small", { class: "st-why", role: "status" });
  let name = "";
  let busy = false;
  const title = `Generate  ·  ${shown("Mod+Enter")}`;
  const go = button("Generate", { kind: "primary large", symbol: "generate", title, act: () => run() });
  const reason = () => base(name)?.problem || (busy ? "Sending …" : "");
  const draw = () => { const n = cellsOf(gridAxes()); go.lastChild.textContent = n > 1 ? `Generate ${n} pictures` : "Generate"; setReason(go, reason(), title); why.textContent = busy ? "" : reason(); };
  async function run() {
    if (reason()) return;
    busy = true;
    draw();
    try {
      const loras = stack();
      const live = loras.some((row) => rowOfRun(row.name)?.live);
      say("generating", await call("generate", "start", { loras, grid: gridAxes(), ...source() }, live ? STEP_PATIENCE : undefined));
    } catch (error) {
      toast("Not generated", { tone: "bad", detail: error.message });
    }
    busy = false;
    draw();
  }
  element.replaceChildren(h("div", { class: "st-foot" }, why, go));
  on("run-generate", run);
  on("base-chosen", ({ form, base: chosen }) => { if (form === "generate") { name = chosen; draw(); } });
  on("bases", draw);
  on("axes", draw);
  draw();
}
