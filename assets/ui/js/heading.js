// The head of a form: its title, and the way back to the defaults.

import { remember, remembered, say } from "./bus.js";
import { button, h, icon } from "./dom.js";
import { openPresets } from "./presets.js";

export function mount(element, { title, form, presets }) {
  element.replaceChildren(h("header", { class: "st-panel-head" }, h("h2", {}, title), h("span", { class: "st-spring" }), presets ? button("Presets", { kind: "small quiet", symbol: "flag", title: "Words and settings kept under a name", act: (_, at) => openPresets(at) }) : null, button("Back to the defaults", { kind: "icon quiet", symbol: "undo", act: () => say("form-reset", { form }) })));
}

// A line that opens and closes a part of the form; open or not is remembered.
export function mountFold(element, { title, folds }) {
  const node = h("button", { type: "button", class: "st-fold", "aria-controls": folds }, icon("chevron", 14), h("span", {}, title));
  const set = (open) => {
    node.setAttribute("aria-expanded", String(open));
    document.body.classList.toggle(`open-${folds}`, open);
    remember(`open.${folds}`, open);
  };
  node.addEventListener("click", () => {
    const open = node.getAttribute("aria-expanded") !== "true";
    set(open);
    if (open) document.getElementById(folds)?.scrollIntoView({ block: "nearest" }); // at the foot of the form it would open out of sight
  });
  element.replaceChildren(node);
  set(remembered(`open.${folds}`, false));
}
