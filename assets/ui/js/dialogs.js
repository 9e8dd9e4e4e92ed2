// Popovers, menus and small dialogs over the page, with focus given back when they close.

import { button, h, icon } from "./dom.js";

export function dialog(title, body, actions = [], { wide = false } = {}) {
  const node = h("dialog", { class: ["st-dialog", wide && "is-wide"], "aria-label": title });
  const close = () => node.close();
  node.append(h("header", {}, h("h2", {}, title), button("Close", { kind: "icon quiet", symbol: "close", act: close })), h("div", { class: "st-dialog-body" }, body), actions.length ? h("footer", {}, actions) : "");
  node.addEventListener("close", () => node.remove());
  node.addEventListener("click", (event) => event.target === node && close());
  document.body.append(node);
  node.showModal();
  return close;
}

export function ask(title, fields, label) {
  return new Promise((resolve) => {
    const inputs = fields.map((field) => h("input", { class: "st-input", value: field.value ?? "", placeholder: field.placeholder ?? "", maxlength: "200", "aria-label": field.label }));
    const form = h("form", { class: "st-form" }, fields.map((field, i) => h("label", {}, h("span", {}, field.label), inputs[i], field.help ? h("small", {}, field.help) : null)));
    const done = () => { const values = inputs.map((input) => input.value.trim()); resolve(values); close(); };
    form.addEventListener("submit", (event) => { event.preventDefault(); done(); });
    const close = dialog(title, form, [button(label, { kind: "primary", act: done })]);
    inputs[0].focus();
  });
}

let open = null;

export function closePopover() {
  open?.();
}

// A popover under (or over) `anchor`; closes on Esc, on a click outside, or when it loses the page.
export function popover(anchor, content, { width = 320, label = "Choose" } = {}) {
  closePopover();
  const node = h("div", { class: "st-popover", role: "dialog", "aria-label": label, style: { width: `${width}px` } }, content);
  document.body.append(node);
  const box = anchor.getBoundingClientRect();
  const tall = node.offsetHeight;
  const above = box.bottom + tall + 12 > innerHeight && box.top > innerHeight - box.bottom;
  node.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
  node.style.top = above ? `${Math.max(8, box.top - tall - 6)}px` : `${box.bottom + 6}px`;
  node.style.maxHeight = `${above ? box.top - 14 : innerHeight - box.bottom - 14}px`;
  const outside = (event) => !node.contains(event.target) && !anchor.contains(event.target) && close();
  const keys = (event) => { if (event.key === "Escape") { event.stopPropagation(); close(); } };
  const close = () => {
    document.removeEventListener("pointerdown", outside, true);
    document.removeEventListener("keydown", keys, true);
    node.remove();
    open = null;
    if (document.contains(anchor)) anchor.focus?.();
  };
  document.addEventListener("pointerdown", outside, true);
  document.addEventListener("keydown", keys, true);
  open = close;
  return close;
}

export function menu(anchor, items) {
  const list = h("div", { class: "st-menu", role: "menu" });
  const close = popover(anchor, list, { width: 232, label: "Menu" });
  for (const item of items) {
    list.append(h("button", { type: "button", role: "menuitem", class: ["st-menu-item", item.danger && "is-danger"], on: { click: () => { close(); item.act(); } } }, icon(item.symbol || "chevron", 16), h("span", {}, item.label), item.hint ? h("kbd", {}, item.hint) : null));
  }
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...list.children];
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
  });
  list.firstChild?.focus();
}
