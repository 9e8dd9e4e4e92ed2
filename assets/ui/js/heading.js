// The head of a form: its title, and the way back to the defaults.

import { remember, remembered, say } from "./bus.js";
import { button, h, icon } from "./dom.js";

export function mount(element, { title, form }) {
  element.replaceChildren(h("header", { class: "st-panel-head" }, h("h2", {}, title), h("span", { class: "st-spring" }), button("Back to the defaults", { kind: "icon quiet", symbol: "undo", act: () => say("form-reset", { form }) })));
}

// A line that opens and closes a part of the form; open or not is remembered.
export function mountFold(element, { title, folds }) {
  const node = h("button", { type: "button", class: "st-fold", "aria-controls": folds }, icon("chevron", 14), h("span", {}, title));
  const set = (open) => {
    node.setAttribute("aria-expanded", String(open));
    document.body.classList.toggle(`open-${folds}`, open);
    remember(`open.${folds}`, open);
  };
  node.addEventListener("click", () => set(node.getAttribute("aria-expanded") !== "true"));
  element.replaceChildren(node);
  set(remembered(`open.${folds}`, false));
}
