// Short messages at the lower right: what happened, why, and one thing to do about it.

import { button, h, icon } from "./dom.js";

const SYMBOLS = { good: "check", bad: "error", warn: "warn", info: "info" };
let region = null;

function place() {
  if (!region) {
    region = h("div", { class: "st-toasts", role: "region", "aria-label": "Messages" });
    document.body.append(region);
  }
  return region;
}

export function toast(text, { tone = "info", detail = "", action = "", act = null, seconds = tone === "bad" ? 12 : 6 } = {}) {
  const node = h("div", { class: ["st-toast", `is-${tone}`], role: tone === "bad" ? "alert" : "status" }, icon(SYMBOLS[tone], 18), h("div", { class: "st-toast-text" }, h("strong", {}, text), detail ? h("span", {}, detail) : null));
  const leave = () => {
    node.classList.add("is-leaving");
    setTimeout(() => node.remove(), 200);
  };
  if (action) node.append(button(action, { kind: "small", act: () => { leave(); act?.(); } }));
  node.append(button("Dismiss", { kind: "icon quiet", symbol: "close", act: leave }));
  let timer = setTimeout(leave, seconds * 1000);
  node.addEventListener("mouseenter", () => clearTimeout(timer));
  node.addEventListener("mouseleave", () => { timer = setTimeout(leave, 2500); });
  const region = place();
  for (const other of [...region.children]) if (other.textContent === node.textContent) other.remove();
  region.append(node);
  while (region.children.length > 4) region.firstChild.remove();
  return leave;
}

export const failed = (what) => (error) => toast(what, { tone: "bad", detail: error.message });
