// Library: LoRAs as cards, base models as a list; search, files dropped in, a drawer with everything about one.

import * as api from "./api.js";
import { on, say, settled } from "./bus.js";
import { command } from "./commands.js";
import { button, empty, h, icon, picture } from "./dom.js";
import { drawer } from "./drawer.js";
import { bytes, count } from "./format.js";
import { grid } from "./grid.js";
import { choose, onDrop, send } from "./intake.js";
import { basesTab } from "./bases.js";
import { inspectDialog } from "./report.js";
import { current, show } from "./shell.js";
import { refresh, state } from "./state.js";
import { failed, toast } from "./toasts.js";

const PAGE = 200;
const SIDE_FILES = [".civitai.info", ".metadata.json", ".json"]; // what download managers write beside a LoRA; the studio reads Civitai's number there
const ACCEPT = ".safetensors,.info,.json";
let found = [];
let query = "";
let generation = 0;
let picked = "";

async function search() {
  generation += 1;
  const mine = generation;
  try {
    const first = (await api.get(`/adapters?limit=${PAGE}&q=${api.id(query)}`)).items;
    if (mine !== generation) return;
    found = first;
    say("found");
    let page = first;
    while (page.length === PAGE && mine === generation) {
      page = (await api.get(`/adapters?limit=${PAGE}&q=${api.id(query)}&before=${api.id(found.at(-1).id)}`)).items;
      if (mine === generation) { found = [...found, ...page]; say("found"); }
    }
  } catch (error) {
    failed("Could not read the library")(error);
  }
}

export async function addFiles(files) {
  const lora = files.filter(([name]) => name.toLowerCase().endsWith(".safetensors"));
  if (!lora.length) return toast("Only .safetensors files are LoRAs", { tone: "warn", detail: "Other formats can hide programs and are not opened." });
  const stems = lora.map(([name]) => name.replace(/\.safetensors$/i, ""));
  const beside = files.filter(([name]) => stems.some((stem) => SIDE_FILES.some((suffix) => name === stem + suffix)));
  const done = toast(`Adding ${count(lora.length, "file")} …`, { seconds: 600 });
  try {
    const report = await send("/adapters", [...lora, ...beside], () => {});
    if (report.accepted) toast(`${count(report.accepted, "LoRA")} in the library`, { tone: "good" });
    for (const item of report.rejected.slice(0, 3)) toast(`${item.name} was not added`, { tone: "bad", detail: item.message });
    await refresh("adapters");
  } catch (error) {
    failed("The files were not added")(error);
  }
  return done();
}

function makeCard() {
  const cover = h("div", { class: "st-card-cover" });
  const use = button("Use in Generate", { kind: "icon small", symbol: "generate", act: (event) => { event.stopPropagation(); const one = card.item; show("generate"); say("stack-add", { name: one.name }); } });
  const card = h("article", { class: "st-lora", role: "listitem", tabIndex: 0, on: { click: () => pick(card.item.id), keydown: (event) => { if (event.target === card && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); pick(card.item.id); } } } }, cover, h("div", { class: "st-lora-use" }, use), h("div", { class: "st-lora-text" }, h("b"), h("div", { class: "st-lora-foot" }, h("code"), h("span", { class: "st-spring" }), h("small"))), h("span", { class: "st-lora-family" }));
  return card;
}

function fillCard(card, item) {
  card.item = item;
  card.setAttribute("aria-label", `${item.name}, ${item.family}`);
  card.classList.toggle("is-picked", item.id === picked);
  card.querySelector("b").textContent = item.name;
  card.querySelector("code").textContent = item.trigger;
  card.querySelector(".st-lora-foot small").textContent = [item.rank && `rank ${item.rank}`, bytes(item.bytes)].filter(Boolean).join(" · ");
  card.querySelector(".st-lora-family").textContent = item.family;
  const cover = card.querySelector(".st-card-cover");
  if (cover.dataset.source !== (item.preview || "none")) {
    cover.dataset.source = item.preview || "none";
    cover.replaceChildren(item.preview ? picture(item.preview, "") : icon("layers", 34));
  }
}

function pick(id) {
  picked = id;
  say("picked", found.find((item) => item.id === id) ?? state.adapters.find((item) => item.id === id) ?? null);
}

export function mount(element) {
  const cards = grid({ width: 190, ratio: 1, foot: 64, label: "LoRAs", make: makeCard, fill: fillCard });
  const input = h("input", { class: "st-input is-search", type: "search", placeholder: "Search name, trigger, base", "aria-label": "Search the library", spellcheck: false });
  const none = empty("library", "No LoRA yet", ["What you train gathers here. Files from elsewhere: drop .safetensors anywhere on this page."], button("Train one", { kind: "primary", symbol: "train", act: () => show("train") }), button("Add a file", { symbol: "upload", act: async () => addFiles(await choose({ accept: ACCEPT })) }));
  const nothing = empty("search", "Nothing found", ["No LoRA has these words in its name, trigger or base."]);
  const total = h("span", { class: "st-dim" });
  const bases = basesTab();
  const tabs = ["LoRAs", "Base models"].map((label, i) => h("button", { type: "button", role: "tab", class: "st-tab", on: { click: () => tab(i) } }, label));
  const side = drawer({ close: () => pick("") });
  const tools = h("div", { class: "st-head-tools" }, total, input, button("Add a file", { symbol: "upload", kind: "small", act: async () => addFiles(await choose({ accept: ACCEPT })) }));
  const main = h("div", { class: "st-library-main" }, cards.node, none, nothing);
  const panel = h("section", { class: "st-library", "aria-label": "Library" }, h("header", { class: "st-view-head" }, h("div", { class: "st-tabs", role: "tablist" }, tabs), h("span", { class: "st-spring" }), tools), h("div", { class: "st-library-body" }, main, bases, side));
  element.replaceChildren(panel);
  onDrop(panel, (files) => (files.length === 1 ? inspectDialog(files[0], addFiles) : addFiles(files)));
  function tab(i) {
    tabs.forEach((node, j) => node.setAttribute("aria-selected", String(i === j)));
    main.hidden = tools.hidden = i !== 0;
    bases.hidden = i !== 1;
    if (i) pick("");
    cards.redraw();
  }
  const draw = () => {
    none.hidden = state.adapters.length > 0 || !state.loaded.adapters;
    nothing.hidden = !query || found.length > 0 || !none.hidden;
    cards.node.hidden = !none.hidden || !nothing.hidden;
    total.textContent = found.length ? count(found.length, "LoRA") : "";
    cards.set(found);
  };
  const typed = settled(() => { query = input.value.trim(); search(); }, 150);
  input.addEventListener("input", typed);
  on("found", draw);
  on("picked", cards.redraw);
  on("adapters", search);
  on("view", cards.redraw);
  on("open-adapter", (id) => { tab(0); pick(id); });
  command({ id: "library-add", title: "Add a LoRA file to the library", symbol: "upload", run: async () => addFiles(await choose({ accept: ACCEPT })) });
  command({ id: "bases", title: "Show the base models", symbol: "box", run: () => { show("library"); tab(1); } });
  command({ id: "library-search", title: "Search the library", keys: "/", symbol: "search", when: () => current() === "library", run: () => input.focus() });
  tab(0);
  draw();
  if (state.loaded.adapters) search();  // the list may have come before this panel was there to hear of it
}
