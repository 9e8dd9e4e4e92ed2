// Generate: the axes of a grid. Each is a line of text that the studio reads; here it is made of a choice, a target and values.

import { on, remember, remembered, say, settled } from "./bus.js";
import { button, h, keyed } from "./dom.js";
import { stack } from "./stack.js";

const KINDS = [["prompt", "Prompt word"], ["seed", "Seed"], ["steps", "Steps"], ["guidance", "Guidance"], ["sampler", "Sampler"], ["weight", "LoRA weight"], ["checkpoint", "Checkpoint"], ["lora", "LoRA"], ["strength", "Strength"], ["negative_prompt", "Negative word"], ["guidance_rescale", "Rescale"], ["true_cfg", "True CFG"], ["hires_strength", "Hires strength"], ["variation_strength", "Variation"]];
const HINTS = { prompt: "cat, dog, fox (the first is replaced)", seed: "1..4", steps: "10, 20, 30", guidance: "2, 4, 6", sampler: "Euler, DPM++ 2M", weight: "0, 0.5, 1", checkpoint: "100, 200, 300", lora: "style, ink@200", strength: "0.3, 0.5, 0.7" };
const ROWS = ["weight", "checkpoint", "lora"];
const NAMES = ["x", "y", "z"];

let serial = 0;
let axes = remembered("axes", []).filter((axis) => KINDS.some(([kind]) => kind === axis?.kind)).slice(0, 3).map((axis) => ({ ...axis, key: ++serial }));
const keep = settled(() => remember("axes", axes.map(({ kind, target, values }) => ({ kind, target, values }))), 200);

export const gridAxes = () => axes.filter((axis) => axis.values.trim()).map((axis) => `${axis.kind}${ROWS.includes(axis.kind) && axis.target ? `:${axis.target}` : ""}=${axis.values.trim()}`);

// How many pictures they make; 0 where it cannot be told from the text.
export function cellsOf(lines) {
  return lines.reduce((product, line) => {
    const parts = line.slice(line.indexOf("=") + 1).split(line.includes("|") ? "|" : ",").map((part) => part.trim()).filter(Boolean);
    const each = parts.map((part) => { const range = part.match(/^(-?[\d.]+?)\.\.(-?[\d.]+?)(?:\.\.([\d.]+))?$/); return range ? Math.max(0, Math.floor((range[2] - range[1]) / (range[3] ?? 1) + 1e-9) + 1) : 1; });
    return product * each.reduce((sum, n) => sum + n, 0);
  }, lines.length ? 1 : 0);
}

function changed() {
  keep();
  say("axes");
}

function makeRow(axis) {
  const find = () => axes.find((one) => one.key === axis.key);
  const kind = h("select", { class: "st-input", "aria-label": "What changes" }, KINDS.map(([value, label]) => h("option", { value }, label)));
  const target = h("select", { class: "st-input", "aria-label": "Which LoRA" });
  const values = h("input", { class: "st-input", "aria-label": "Values", maxlength: "2000" });
  kind.addEventListener("change", () => { find().kind = kind.value; changed(); });
  target.addEventListener("change", () => { find().target = target.value; changed(); });
  values.addEventListener("input", () => { find().values = values.value; changed(); });
  return h("li", { class: "st-axis" }, h("b"), kind, target, values, button("Remove this axis", { kind: "icon quiet small", symbol: "close", act: () => { axes = axes.filter((one) => one.key !== axis.key); changed(); } }));
}

function fillRow(node, axis) {
  const [kind, target] = node.querySelectorAll("select");
  const values = node.querySelector("input");
  node.querySelector("b").textContent = NAMES[axes.indexOf(axis)];
  kind.value = axis.kind;
  target.hidden = !ROWS.includes(axis.kind);
  const names = stack().map((row) => row.name);
  if (axis.target && !names.includes(axis.target)) axis.target = "";
  target.replaceChildren(h("option", { value: "" }, names.length ? "the only row" : "no LoRA in the stack"), ...names.map((name) => h("option", { value: name }, name)));
  target.value = axis.target;
  values.placeholder = HINTS[axis.kind] ?? "";
  if (document.activeElement !== values) values.value = axis.values;
}

export function mount(element) {
  const list = h("ul", { class: "st-axes", "aria-label": "Axes" });
  const words = h("small", { class: "st-dim", role: "status" });
  const add = button("Add an axis", { kind: "small", symbol: "plus", act: () => { axes = [...axes, { key: ++serial, kind: KINDS[axes.length]?.[0] ?? "seed", target: "", values: "" }]; changed(); } });
  element.replaceChildren(h("section", { class: "st-section", "aria-label": "Grid" }, list, h("div", { class: "st-axes-foot" }, add, words)));
  const draw = () => {
    keyed(list, axes, (axis) => axis.key, makeRow, fillRow);
    add.hidden = axes.length >= 3;
    const n = cellsOf(gridAxes());
    words.textContent = n ? `${n} pictures in one job` : "One picture for every combination.";
  };
  on("axes", draw);
  on("stack", draw);
  draw();
}
