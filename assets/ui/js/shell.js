// The frame: rail, views, theme, keys. Loaded first; starts the stream.

import { on, remember, remembered, say } from "./bus.js";
import { command, listen, run, shown } from "./commands.js";
import { h, icon } from "./dom.js";
import { openPalette } from "./palette.js";
import { connect } from "./stream.js";
import { toast } from "./toasts.js";
import { isActive, state } from "./state.js";

const VIEWS = [["train", "Train"], ["generate", "Generate"], ["library", "Library"], ["queue", "Queue"], ["help", "Help"]];

export const current = () => document.body.dataset.view;

export function show(view) {
  document.body.dataset.view = view;
  remember("view", view);
  document.querySelectorAll(".st-rail-item[data-view]").forEach((node) => node.setAttribute("aria-current", node.dataset.view === view ? "page" : "false"));
  say("view", view);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.body.classList.toggle("dark", theme === "dark");
  document.cookie = `studio_theme=${theme}; path=/; max-age=31536000; samesite=strict`;
  const address = new URL(location.href);
  address.searchParams.set("__theme", theme);
  history.replaceState(null, "", address);
  say("theme", theme);
}

function toggleTheme() {
  setTheme(document.documentElement.dataset.theme === "light" ? "dark" : "light");
}

function declare() {
  VIEWS.forEach(([view, title], i) => command({ id: `view-${view}`, title: `Go to ${title}`, keys: String(i + 1), symbol: view, run: () => show(view) }));
  command({ id: "palette", title: "Find a command", keys: "Mod+K", symbol: "search", run: openPalette });
  command({ id: "theme", title: "Switch between dark and light", symbol: "sun", run: toggleTheme });
  command({ id: "run", title: "Start training / generate", keys: "Mod+Enter", symbol: "play", when: () => ["train", "generate"].includes(current()), run: () => say(`run-${current()}`) });
  command({ id: "cancel", title: "Cancel the running job of this view", keys: "Escape", symbol: "stop", when: () => ["train", "generate"].includes(current()), run: () => say(`cancel-${current()}`) });
}

export function mount(element) {
  const theme = new URL(location.href).searchParams.get("__theme") === "light" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  document.body.classList.toggle("dark", theme === "dark");
  const count = h("span", { class: "st-rail-count", hidden: true });
  const item = (view, title, i) => h("button", { type: "button", class: "st-rail-item", data: { view }, "aria-label": title, title: `${title}  ·  ${i + 1}`, on: { click: () => show(view) } }, icon(view, 21), h("span", {}, title), view === "queue" ? count : null);
  const themeIcon = h("button", { type: "button", class: "st-rail-item is-small", "aria-label": "Switch between dark and light", title: "Dark / light", on: { click: () => run("theme") } });
  const drawTheme = () => themeIcon.replaceChildren(icon(document.documentElement.dataset.theme === "light" ? "moon" : "sun", 18));
  const find = h("button", { type: "button", class: "st-rail-item is-small", "aria-label": "Find a command", title: `Find a command  ·  ${shown("Mod+K")}`, on: { click: openPalette } }, icon("search", 18));
  element.replaceChildren(h("nav", { class: "st-rail", "aria-label": "Views" }, h("div", { class: "st-mark", title: "LoRA Studio" }, icon("mark", 24)), VIEWS.slice(0, 4).map(([view, title], i) => item(view, title, i)), h("div", { class: "st-spring" }), find, themeIcon, item("help", "Help", 4)));
  drawTheme();
  on("theme", drawTheme);
  on("jobs", () => {
    const active = state.jobs.filter(isActive).length;
    count.hidden = !active;
    count.textContent = String(active);
  });
  on("connection", ({ open }) => open ? toast("The studio is back", { tone: "good", seconds: 3 }) : toast("The studio does not answer", { tone: "warn", detail: "Trying again. Runs go on by themselves; look at its terminal if this stays.", seconds: 10 }));
  on("restarted", () => toast("The studio was restarted", { detail: "This page goes on with it; runs were picked up from their folders.", action: "Reload", act: () => location.reload() }));
  declare();
  listen();
  show(VIEWS.some(([view]) => view === remembered("view", "")) ? remembered("view", "train") : "train");
  connect();
}
