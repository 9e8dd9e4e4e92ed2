// Train, right: what of a recipe the open run has otherwise.

import * as api from "./api.js";
import { remember, remembered } from "./bus.js";
import { h } from "./dom.js";
import { failed } from "./toasts.js";

const value = (given) => (given === null || given === undefined ? "–" : Array.isArray(given) ? given.join(", ") : typeof given === "number" ? String(Number(given.toPrecision(6))) : String(given));

export function against() {
  const choice = h("select", { class: "st-input is-small", "aria-label": "Recipe to compare with" });
  const body = h("div");
  const node = h("details", { class: "st-card" }, h("summary", {}, "Against a recipe"), h("div", { class: "st-against-head" }, choice), body);
  let recipes = null;
  let open = null;
  let shown = "";

  async function look() {
    if (!node.open || !open) return;
    try {
      recipes ??= (await api.get("/recipes")).items;
      const fitting = recipes.filter((one) => one.family === open.family);
      const wanted = remembered("against", "");
      choice.replaceChildren(...fitting.map((one) => h("option", { value: one.name }, one.title)));
      choice.value = fitting.some((one) => one.name === wanted) ? wanted : ((fitting.find((one) => one.name === `${open.family}-style`) ?? fitting[0])?.name ?? "");
      if (!choice.value) return body.replaceChildren(h("p", { class: "st-dim" }, "There is no recipe for this kind of base."));
      const key = `${open.id} ${choice.value}`;
      if (key === shown) return;
      const { items } = await api.get(`/recipes/${api.id(choice.value)}/diff/${api.id(open.id)}`);
      shown = key;
      const rows = items.map((one) => h("tr", { title: one.why }, h("td", {}, one.setting.replaceAll("_", " ")), h("td", {}, value(one.recipe)), h("td", { class: "is-run" }, value(one.run)), h("td", { class: "st-dim" }, one.why)));
      body.replaceChildren(items.length ? h("table", { class: "st-table" }, h("thead", {}, h("tr", {}, ["Setting", "Recipe", "Run", "Why in the recipe"].map((text) => h("th", {}, text)))), h("tbody", {}, rows)) : h("p", { class: "st-dim" }, "The run is as the recipe says."));
    } catch (error) {
      failed("The run was not compared")(error);
    }
  }
  node.addEventListener("toggle", look);
  choice.addEventListener("change", () => { remember("against", choice.value); look(); });
  return {
    node,
    draw(record) {
      if (open?.id === record.id) return;
      open = record;
      body.replaceChildren();
      shown = "";
      look();
    },
  };
}
