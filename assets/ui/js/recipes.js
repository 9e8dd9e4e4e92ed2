// Train, head of the form: a starting point by name, which fills the settings and tells why.

import { h } from "./dom.js";
import { call } from "./form.js";
import { toast } from "./toasts.js";

export function mount(element, { recipes }) {
  const about = h("small", { class: "st-recipe-about" });
  const choice = h("select", { class: "st-input is-whole", "aria-label": "Recipe" }, h("option", { value: "" }, "Recipe: none"), recipes.map((one) => h("option", { value: one.name }, one.title)));
  let before = "";
  choice.addEventListener("change", async () => {
    const chosen = recipes.find((one) => one.name === choice.value);
    if (!chosen) {
      before = about.textContent = "";
      return;
    }
    try {
      const { why } = await call("train", "recipe", { name: chosen.name });
      before = chosen.name;
      about.textContent = chosen.about;
      about.title = Object.entries(why).map(([setting, reason]) => `${setting}: ${reason}`).join("\n");
    } catch (error) {
      choice.value = before;
      toast("That recipe does not fit", { tone: "bad", detail: error.message });
    }
  });
  element.replaceChildren(h("div", { class: "st-recipe" }, choice, about));
}
