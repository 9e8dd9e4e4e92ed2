// Generate: the LoRA stack. Rows are edited here and kept in the browser; Generate sends them along.

import { on, remember, remembered, say, settled } from "./bus.js";
import { popover } from "./dialogs.js";
import { button, h, icon, keyed, picture } from "./dom.js";
import { call } from "./form.js";
import { show } from "./shell.js";
import { adapter, base, state } from "./state.js";
import { toast } from "./toasts.js";

let rows = remembered("stack", []).filter((row) => typeof row?.name === "string" && Number.isFinite(row.weight));
let baseName = "";
let serial = 0;
rows.forEach((row) => { row.key = ++serial; });

const keep = settled(() => remember("stack", rows.map(({ name, weight, on: used, word, more }) => ({ name, weight, on: used, word, more }))), 150);
const family = () => base(baseName)?.family ?? "";
const fits = (found) => !found || !family() || found.family === family();
const usual = (name) => remembered("weights", {})[name] ?? 1;

const sent = ({ name, weight, more }) => ({ ...more, name, weight });

export const stack = () => rows.filter((row) => row.on && fits(adapter(row.name))).map(sent);

function changed() {
  keep();
  say("stack");
}

// Rows as a picture had them. `other`: names of those that are missing or other files here; they stay off until somebody decides.
export function setStack(loras, other = []) {
  rows = loras.map(({ name, weight, ...more }) => ({ key: ++serial, name, weight, more, on: !other.includes(name), other: other.includes(name) }));
  changed();
}

// The trigger word comes into the prompt with its LoRA, and leaves with it if it came that way.
async function insertWord(row) {
  const word = adapter(row.name)?.trigger;
  if (word && (await call("generate", "insert", { text: word }).catch(() => false))) row.word = word;
  keep();
}

function removeRow(row) {
  rows = rows.filter((one) => one !== row);
  if (row.word) call("generate", "withdraw", { text: row.word }).catch(() => {});
  changed();
}

function offerSettings(found, row) {
  const { kind, settings, weight } = found?.accelerator ?? {};
  if (!kind) return;
  row.weight = weight;
  const words = Object.entries(settings).map(([name, value]) => `${name} ${value}`).join(", ");
  toast(`${found.name} is a ${kind} LoRA`, { detail: `It is made for ${words}.`, action: "Use these", seconds: 20, act: () => call("generate", "fill", { values: settings }).catch(() => {}) });
}

export function addToStack(name) {
  if (rows.some((row) => row.name === name)) return toast(`${name} is in the stack already`);
  const row = { key: ++serial, name, weight: usual(name), on: true };
  rows = [...rows, row];
  offerSettings(adapter(name), row);
  insertWord(row);
  return changed();
}

function setWeight(row, value, node) {
  row.weight = Math.max(-10, Math.min(10, Number.isFinite(value) ? Math.round(value * 100) / 100 : 0));
  remember("weights", { ...remembered("weights", {}), [row.name]: row.weight });
  const [range, number] = node.querySelectorAll("input[type=range], input[type=number]");
  if (document.activeElement !== number) number.value = String(row.weight);
  range.value = String(row.weight);
  range.style.setProperty("--share", `${Math.max(0, Math.min(100, (100 * (row.weight + 0.5)) / 2.5))}%`);
  keep();
}

function move(row, step) {
  const at = rows.indexOf(row);
  const to = Math.max(0, Math.min(rows.length - 1, at + step));
  if (to === at) return;
  rows = rows.toSpliced(at, 1).toSpliced(to, 0, row);
  changed();
}

let dragged = null;

function makeRow(row) {
  const find = () => rows.find((one) => one.key === row.key);
  const range = h("input", { type: "range", class: "st-range", min: "-0.5", max: "2", step: "0.05", "aria-label": `Weight of ${row.name}` });
  const number = h("input", { type: "number", class: "st-number", min: "-10", max: "10", step: "0.05", "aria-label": `Weight of ${row.name} as a number` });
  const toggle = h("input", { type: "checkbox", class: "st-switch", role: "switch", "aria-label": `Use ${row.name}` });
  const grip = h("button", { type: "button", class: "st-grip", draggable: true, "aria-label": `Move ${row.name}: Alt and the arrow keys`, title: "Drag, or Alt + ↑ ↓" }, icon("grip", 16));
  const word = h("button", { type: "button", class: "st-chip", title: "Put the trigger word into the prompt" });
  const node = h("li", { class: "st-stackrow" }, grip, h("div", { class: "st-stackrow-cover" }), h("div", { class: "st-stackrow-main" }, h("div", { class: "st-stackrow-top" }, h("b"), word, h("span", { class: "st-spring" }), toggle, button(`Remove ${row.name}`, { kind: "icon quiet small", symbol: "close", act: () => removeRow(find()) })), h("div", { class: "st-stackrow-weight" }, range, number), h("small", { class: "st-misfit" })));
  range.addEventListener("input", () => setWeight(find(), Number(range.value), node));
  range.addEventListener("dblclick", () => setWeight(find(), 1, node));
  number.addEventListener("input", () => number.value !== "" && setWeight(find(), Number(number.value), node));
  number.addEventListener("blur", () => setWeight(find(), Number(number.value), node));
  toggle.addEventListener("change", () => { find().on = toggle.checked; changed(); });
  word.addEventListener("click", () => insertWord(find()));
  node.addEventListener("keydown", (event) => {
    const step = event.altKey && { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const focused = document.activeElement;
    move(find(), step);
    focused.focus();
  });
  grip.addEventListener("dragstart", (event) => { dragged = row.key; event.dataTransfer.effectAllowed = "move"; event.dataTransfer.setDragImage(node, 12, 20); node.classList.add("is-dragged"); });
  grip.addEventListener("dragend", () => { dragged = null; node.classList.remove("is-dragged"); });
  node.addEventListener("dragover", (event) => {
    if (dragged === null || dragged === row.key) return;
    event.preventDefault();
    move(rows.find((one) => one.key === dragged), rows.indexOf(find()) - rows.findIndex((one) => one.key === dragged));
  });
  return node;
}

function fillRow(node, row) {
  const found = adapter(row.name);
  const [title, word] = [node.querySelector("b"), node.querySelector(".st-chip")];
  title.textContent = row.name;
  title.title = row.name;
  word.textContent = found?.trigger ?? "";
  word.hidden = !found?.trigger;
  node.querySelector(".st-switch").checked = row.on;
  const trouble = !found && state.loaded.adapters ? "not in the library" : !fits(found) ? `made for ${found.family}, left out with this base` : row.other ? "another file than the picture was drawn with" : "";
  node.querySelector(".st-misfit").textContent = trouble;
  node.classList.toggle("is-off", !row.on || Boolean(trouble));
  const cover = node.querySelector(".st-stackrow-cover");
  const source = found?.preview ?? "";
  if (cover.dataset.source !== source) {
    cover.dataset.source = source;
    cover.replaceChildren(source ? picture(source, "") : icon("layers", 18));
  }
  setWeight(row, row.weight, node);
}

export function adapterTile(found, act, note = "") {
  return h("button", { type: "button", class: "st-tile", title: found.name, on: { click: act } }, h("span", { class: "st-tile-cover" }, found.preview ? picture(found.preview, "") : icon("layers", 22)), h("b", {}, found.name), h("small", {}, note || found.trigger || found.family));
}

function openChooser(anchor) {
  const list = h("div", { class: "st-tiles" });
  const search = h("input", { class: "st-input", type: "search", placeholder: "Search LoRAs", "aria-label": "Search LoRAs" });
  const close = popover(anchor, h("div", { class: "st-chooser" }, search, list), { width: 396, label: "Add a LoRA" });
  const fill = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    const found = state.adapters.filter((one) => fits(one) && words.every((word) => `${one.name} ${one.trigger}`.toLowerCase().includes(word)));
    list.replaceChildren(...found.slice(0, 60).map((one) => adapterTile(one, () => { close(); addToStack(one.name); })));
    if (found.length) return;
    const others = state.adapters.length ? "None of your LoRAs fits this base and search." : "There is no LoRA yet.";
    list.append(h("p", { class: "st-dim" }, others, " ", button("Train one", { kind: "small", symbol: "train", act: () => { close(); show("train"); } })));
  };
  search.addEventListener("input", fill);
  fill();
  search.focus();
}

export function mount(element) {
  const list = h("ul", { class: "st-stack", "aria-label": "LoRA stack" });
  const none = h("p", { class: "st-stack-none" }, "No LoRA: the base draws alone.");
  const add = button("Add LoRA", { kind: "small", symbol: "plus", act: (_, node) => openChooser(node) });
  const title = h("h3", {}, "LoRAs");
  element.replaceChildren(h("section", { class: "st-section", "aria-label": "LoRAs" }, h("header", {}, title, h("span", { class: "st-spring" }), add), none, list));
  const draw = () => {
    none.hidden = rows.length > 0;
    const used = stack().length;
    title.textContent = used ? `LoRAs · ${used}` : "LoRAs";
    keyed(list, rows, (row) => row.key, makeRow, fillRow);
  };
  on("stack", draw);
  on("adapters", draw);
  on("bases", draw);
  on("base-chosen", ({ form, base: name }) => { if (form === "generate") { baseName = name; draw(); } });
  on("stack-add", ({ name }) => addToStack(name));
  draw();
}
