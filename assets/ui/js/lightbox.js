// Pictures large, over everything: arrows walk, Esc closes.

import { button, h } from "./dom.js";

export function lightbox(items, at = 0) {
  const image = h("img", { alt: "" });
  const title = h("b");
  const text = h("span");
  const node = h("dialog", { class: "st-lightbox", "aria-label": "Picture" }, h("header", {}, title, text, h("span", { class: "st-spring" }), button("Close", { kind: "icon quiet", symbol: "close", act: () => node.close() })), image);
  const draw = () => {
    const item = items[at];
    image.src = item.src;
    image.alt = item.text;
    title.textContent = items.length > 1 ? `${item.title} · ${at + 1} of ${items.length}` : item.title;
    text.textContent = item.text;
  };
  node.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    at = (at + step + items.length) % items.length;
    draw();
  });
  node.addEventListener("click", (event) => event.target === node && node.close());
  node.addEventListener("close", () => node.remove());
  document.body.append(node);
  draw();
  node.showModal();
}
