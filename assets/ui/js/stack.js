// Generate: the LoRA stack. Rows are edited here and kept in the browser; Generate sends them along.

import { on, remember, remembered, say, settled } from "./bus.js";
import { popover } from "./dialogs.js";
import { button, h, icon, keyed, picture } from "./dom.js";
import { call } from "./form.js";
import { interference } from "./interference.js";
import { liveRuns, rowOfRun, runOf } from "./runs.js";
import { show } from "./shell.js";
import { adapter, base, state } from "./state.js";
import { editor, isPlain } from "./strengths.js";
import { toast } from "./toasts.js";

let rows = remembered("stack", []).filter((row) => typeof row?.name === "string" && Number.isFinite(row.weight));
let baseName = "";
let serial = 0;
rows.forEach((row) => { row.key = ++serial; });

const keep = settled(() => remember("stack", rows.map(({ name, weight, on: used, word, more }) => ({ name, weight, on: used, word, more }))), 150);
const family = () => base(baseName)?.family ?? "";
const fits = (found) => !found || !family() || found.family === family();
// A LoRA of the library, or a run: both have a name, a family and perhaps a picture.
const behind = (name) => adapter(name) ?? rowOfRun(name);
const label = (name) => behind(name)?.label ?? name;
const usual = (name) => remembered("weights", {})[name] ?? 1;

const sent = ({ name, weight, more }) => ({ ...more, name, weight });
const moved = settled(() => say("stack-moved"), 60);

export const stack = () => rows.filter((row) => row.on && fits(behind(row.name))).map(sent);

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
  const word = behind(row.name)?.trigger;
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
  if (rows.some((row) => row.name === name)) return toast(`${label(name)} is in the stack already`);
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
  moved();
}

function weigh(weights) {
  for (const row of rows) if (row.name in weights) row.weight = weights[row.name];
  changed();
}

// The editor of a row comes when it is opened for the first time.
function unfold(node, row, open) {
  row.open = open;
  const fold = node.querySelector(".st-stackrow-fold");
  fold.setAttribute("aria-expanded", String(open));
  if (open && !node.editor) {
    const find = () => rows.find((one) => one.key === row.key);
    node.editor = editor(behind(row.name)?.title ?? row.name, (more) => { find().more = more; fillRow(node, find()); });
    node.append(node.editor.node);
  }
  if (node.editor) {
    node.editor.node.hidden = !open;
    node.editor.set(row.more, row.weight, base(baseName));
  }
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
  const fold = button(`Strengths of ${behind(row.name)?.title ?? row.name}`, { kind: "icon quiet small", symbol: "sliders", title: "Text encoders, blocks and steps", act: () => unfold(node, find(), !find().open), "aria-expanded": "false" });
  fold.classList.add("st-stackrow-fold");
  const node = h("li", { class: "st-stackrow" }, grip, h("div", { class: "st-stackrow-cover" }), h("div", { class: "st-stackrow-main" }, h("div", { class: "st-stackrow-top" }, h("b"), word, h("span", { class: "st-spring" }), fold, toggle, button(`Remove ${row.name}`, { kind: "icon quiet small", symbol: "close", act: () => removeRow(find()) })), h("div", { class: "st-stackrow-weight" }, range, number), h("small", { class: "st-misfit" })));
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
  const found = behind(row.name);
  const [title, word] = [node.querySelector("b"), node.querySelector(".st-chip")];
  title.textContent = found?.title ?? row.name;
  title.title = label(row.name);
  word.textContent = found?.at ?? found?.trigger ?? "";
  word.hidden = !word.textContent;
  node.querySelector(".st-switch").checked = row.on;
  node.classList.toggle("is-live", Boolean(found?.live));
  node.classList.toggle("is-run", Boolean(found?.at));
  node.querySelector(".st-stackrow-fold").classList.toggle("is-used", !isPlain(row.more));
  if (node.editor) node.editor.set(row.more, row.weight, base(baseName));
  const trouble = !found && state.loaded.adapters && state.loaded.jobs ? (runOf(row.name) ? "the run is not there any more" : "not in the library") : !fits(found) ? `made for ${found.family}, left out with this base` : row.other ? "another file than the picture was drawn with" : "";
  node.querySelector(".st-misfit").textContent = trouble;
  node.classList.toggle("is-off", !row.on || Boolean(trouble));
  const cover = node.querySelector(".st-stackrow-cover");
  const source = found?.preview ?? "";
  if (cover.dataset.source !== source) {
    cover.dataset.source = source;
    cover.replaceChildren(source ? picture(source, "") : icon(found?.live ? "train" : "layers", 18));
  }
  setWeight(row, row.weight, node);
}

export function adapterTile(found, act, note = "") {
  const name = found.label ?? found.name;
  return h("button", { type: "button", class: ["st-tile", found.live && "is-live"], title: found.live ? `${name}: its weights are copied when you press Generate` : name, on: { click: act } }, h("span", { class: "st-tile-cover" }, found.preview ? picture(found.preview, "") : icon(found.live ? "train" : "layers", 22), found.live ? h("span", { class: "st-tile-live" }, "live") : null), h("b", {}, found.title ?? name), h("small", {}, note || found.at || found.trigger || found.family));
}

function openChooser(anchor) {
  const list = h("div", { class: "st-tiles" });
  const search = h("input", { class: "st-input", type: "search", placeholder: "Search LoRAs", "aria-label": "Search LoRAs" });
  const close = popover(anchor, h("div", { class: "st-chooser" }, search, list), { width: 396, label: "Add a LoRA" });
  const fill = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    const matches = (one) => fits(one) && words.every((word) => `${one.label ?? one.name} ${one.trigger}`.toLowerCase().includes(word));
    const running = liveRuns().filter(matches);
    const found = [...running, ...state.adapters.filter(matches)];
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
  const check = interference({ rows: stack, base: () => baseName, label, weigh });
  element.replaceChildren(h("section", { class: "st-section", "aria-label": "LoRAs" }, h("header", {}, title, h("span", { class: "st-spring" }), add), none, list, check.node));
  const draw = () => {
    none.hidden = rows.length > 0;
    const used = stack().length;
    title.textContent = used ? `LoRAs · ${used}` : "LoRAs";
    keyed(list, rows, (row) => row.key, makeRow, fillRow);
    check.changed();
  };
  on("stack", draw);
  on("stack-moved", check.changed);
  on("jobs", () => rows.some((row) => runOf(row.name)) && draw());
  on("adapters", draw);
  on("bases", draw);
  on("base-chosen", ({ form, base: name }) => { if (form === "generate") { baseName = name; draw(); } });
  on("stack-add", ({ name }) => addToStack(name));
  draw();
}
