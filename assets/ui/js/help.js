// Help: the chapters beside the guide, and the keys.

import { h } from "./dom.js";
import { all, shown } from "./commands.js";
import { on } from "./bus.js";

export function mount(element) {
  const chapters = h("ul", { class: "st-chapters" });
  const keys = h("dl", { class: "st-keys" });
  element.replaceChildren(h("nav", { class: "st-panel", "aria-label": "Chapters" }, h("header", { class: "st-panel-head" }, h("h2", {}, "Help")), h("div", { class: "st-scroll st-pad" }, chapters, h("h4", {}, "Keys"), keys)));
  const draw = (view) => {
    if (view !== "help") return;
    const heads = [...document.querySelectorAll("#help-text h1, #help-text h2")];
    chapters.replaceChildren(...heads.map((head) => h("li", { class: head.tagName === "H1" ? "is-first" : "" }, h("button", { type: "button", class: "st-link", on: { click: () => head.scrollIntoView({ behavior: "smooth", block: "start" }) } }, head.textContent))));
    keys.replaceChildren(...all().filter((entry) => entry.keys).map((entry) => h("div", {}, h("dt", {}, entry.title), h("dd", {}, h("kbd", {}, shown(entry.keys))))));
  };
  on("view", (view) => setTimeout(() => draw(view), 60));
}
