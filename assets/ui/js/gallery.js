// Generate, bottom: recent pictures as a filmstrip; older ones come as it is scrolled.

import { on } from "./bus.js";
import { h, keyed, picture } from "./dom.js";
import { images, loadMore, select } from "./images.js";

export function mount(element) {
  const strip = h("div", { class: "st-gallery", role: "listbox", "aria-label": "Recent pictures", "aria-orientation": "horizontal", tabIndex: -1 });
  const none = h("p", { class: "st-dim" }, "Pictures you make gather here.");
  element.replaceChildren(h("div", { class: "st-gallerybar" }, none, strip));
  const draw = () => {
    none.hidden = images.items.length > 0 || !images.loaded;
    keyed(strip, images.items, (item) => item.id, (item) => h("button", { type: "button", role: "option", class: "st-thumb", title: item.prompt, on: { click: () => select(item.id) } }, picture(`${item.thumbnail}?side=192`, item.prompt || "Picture")), (node, item) => node.setAttribute("aria-selected", String(item.id === images.selected)));
  };
  strip.addEventListener("scroll", () => strip.scrollLeft + strip.clientWidth > strip.scrollWidth - 800 && loadMore());
  strip.addEventListener("wheel", (event) => { if (!event.deltaX) { strip.scrollLeft += event.deltaY; event.preventDefault(); } }, { passive: false });
  on("images", draw);
  on("image-selected", () => { draw(); strip.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); });
  draw();
}
