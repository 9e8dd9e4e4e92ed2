// Ctrl/Cmd+K: every command, run and LoRA by a few letters of its name.

import { all, shown } from "./commands.js";
import { h, icon } from "./dom.js";
import { state } from "./state.js";
import { show } from "./shell.js";
import { say } from "./bus.js";

function score(text, query) {
  text = text.toLowerCase();
  let at = -1;
  let points = 0;
  for (const letter of query) {
    const next = text.indexOf(letter, at + 1);
    if (next < 0) return 0;
    points += next === at + 1 ? 3 : 1;
    if (next === 0 || text[next - 1] === " ") points += 2;
    at = next;
  }
  return points + 1 / text.length;
}

function entries() {
  const jobs = state.jobs.filter((job) => job.kind === "train").slice(0, 30).map((job) => ({ title: job.name, group: "Run", symbol: "train", run: () => { show("train"); say("open-run", job.id); } }));
  const adapters = state.adapters.map((adapter) => ({ title: adapter.name, group: "LoRA", symbol: "layers", run: () => { show("library"); say("open-adapter", adapter.id); } }));
  return [...all().map((entry) => ({ group: "Command", ...entry })), ...jobs, ...adapters];
}

export function openPalette() {
  if (document.querySelector(".st-palette")) return;
  const input = h("input", { class: "st-palette-input", placeholder: "Find a command, a run, a LoRA …", role: "combobox", "aria-expanded": "true", "aria-controls": "st-palette-list", "aria-label": "Find a command", spellcheck: false });
  const list = h("ul", { id: "st-palette-list", role: "listbox", "aria-label": "Results" });
  const node = h("dialog", { class: "st-palette", "aria-label": "Command palette" }, h("div", { class: "st-palette-top" }, icon("search", 18), input), list);
  let found = [];
  let at = 0;
  const mark = () => [...list.children].forEach((row, i) => {
    row.setAttribute("aria-selected", String(i === at));
    if (i === at) { row.scrollIntoView({ block: "nearest" }); input.setAttribute("aria-activedescendant", row.id); }
  });
  const take = (entry) => { node.close(); entry.run(); };
  const fill = () => {
    const query = input.value.trim().toLowerCase();
    found = entries().map((entry) => [query ? score(entry.title, query) : 1, entry]).filter(([points]) => points > 0).sort((a, b) => b[0] - a[0]).slice(0, 40).map(([, entry]) => entry);
    at = 0;
    list.replaceChildren(...found.map((entry, i) => h("li", { id: `st-found-${i}`, role: "option", on: { click: () => take(entry), pointermove: () => { if (at !== i) { at = i; mark(); } } } }, icon(entry.symbol || "command", 16), h("span", {}, entry.title), h("small", {}, entry.group), entry.keys ? h("kbd", {}, shown(entry.keys)) : null)));
    if (!found.length) list.append(h("li", { class: "st-palette-none" }, "Nothing of that name"));
    mark();
  };
  input.addEventListener("input", fill);
  node.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && found.length) { event.preventDefault(); at = (at + step + found.length) % found.length; mark(); }
    if (event.key === "Enter" && found[at]) { event.preventDefault(); take(found[at]); }
  });
  node.addEventListener("click", (event) => event.target === node && node.close());
  node.addEventListener("close", () => node.remove());
  document.body.append(node);
  node.showModal();
  fill();
  input.focus();
}
