// Generate, right: how the picture was made, and what can be done with it.

import { on } from "./bus.js";
import { button, h, icon } from "./dom.js";
import { save } from "./exporting.js";
import { ago } from "./format.js";
import { removeSelected, selected } from "./images.js";
import { pairing } from "./pairs.js";
import { recall, recallPicture } from "./recall.js";
import { startFrom } from "./source.js";
import { isPlain } from "./strengths.js";
import { toast } from "./toasts.js";

export function factList(pairs) {
  return h("dl", { class: "st-facts" }, pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value instanceof Node ? value : String(value)))));
}

function copyable(text) {
  return h("button", { type: "button", class: "st-copy", title: "Copy", on: { click: () => navigator.clipboard.writeText(text).then(() => toast("Copied", { tone: "good", seconds: 2 }), () => toast("The browser does not allow copying here", { tone: "warn" })) } }, h("span", {}, text), icon("copy", 13));
}

function loras(settings) {
  if (!settings.loras?.length) return null;
  return h("ul", { class: "st-loralist" }, settings.loras.map((row) => h("li", {}, icon("layers", 14), h("span", {}, row.name, isPlain(row) ? null : h("small", { class: "st-dim", title: "With strengths of its own by part, block or step" }, " by part or step")), h("b", {}, String(row.weight)))));
}

export function mount(element) {
  const body = h("div", { class: "st-scroll" });
  element.replaceChildren(h("section", { class: "st-panel", "aria-label": "About the picture" }, h("header", { class: "st-panel-head" }, h("h2", {}, "Picture")), body));
  const draw = (item) => {
    if (!item) return body.replaceChildren(h("p", { class: "st-dim st-pad" }, "Choose a picture to see how it was made."));
    const s = item.settings;
    return body.replaceChildren(h("div", { class: "st-pad st-about" },
      h("div", { class: "st-actions" }, button("Recall all", { symbol: "recall", kind: "small primary", title: "All settings back into the form  ·  A", act: () => recallPicture(item.id) }), button("Seed", { symbol: "dice", kind: "small", title: "S", act: () => recall(s, "seed") }), button("Prompt", { symbol: "text", kind: "small", title: "P", act: () => recall(s, "prompt") })),
      h("h4", {}, "Prompt"), s.prompt ? h("p", { class: "st-prompt" }, s.prompt) : h("p", { class: "st-dim" }, "none"),
      s.negative_prompt ? [h("h4", {}, "Negative"), h("p", { class: "st-prompt" }, s.negative_prompt)] : null,
      s.loras?.length ? [h("h4", {}, "LoRAs"), loras(s)] : null,
      h("h4", {}, "Settings"),
      factList([["Base", s.base], ["Size", `${item.width} × ${item.height}`], ["Seed", copyable(String(item.seed))], ["Steps", s.steps], ["Guidance", s.guidance], ["Sampler", s.sampler], ["From a picture", s.init_image ? `strength ${s.strength}${s.mask ? ", masked" : ""}` : ""], ["Hires", s.hires_scale ? `${s.hires_scale} ×, strength ${s.hires_strength}` : ""], ["Upscale", s.upscale ? `${s.upscale} ×, strength ${s.upscale_strength}` : ""], ["Variation", s.variation_strength ? `${s.variation_strength} of seed ${s.variation_seed}` : ""], ["Made", ago(item.created)]]),
      h("div", { class: "st-actions" }, button("Start from it", { symbol: "image", kind: "small", title: "Draw on from this picture, or a part of it", act: () => startFrom(item.id) }), button("Save", { symbol: "download", kind: "small", act: () => save(`${item.url}?save=true`) })),
      h("div", { class: "st-actions" }, pairing(item, () => draw(selected())), h("span", { class: "st-spring" }), button("Delete", { symbol: "trash", kind: "icon small danger", title: "Delete  ·  Del", act: removeSelected }))));
  };
  on("image-selected", draw);
  on("images", () => draw(selected()));
  draw(selected());
}
