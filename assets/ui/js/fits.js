// Train, above the Start button: whether the run fits the card, what it would take of it, and how it would be made to fit.

import { on, settled } from "./bus.js";
import { badge, h } from "./dom.js";
import { factList } from "./facts.js";
import { call } from "./form.js";
import { chosenSet } from "./sets.js";

const WAIT = 500;
const gb = (n) => `${(n / 1e9).toFixed(n < 1e8 ? 2 : 1)} GB`;
const percent = (share) => `${Math.round(share * 100)} %`;

// Parts of the largest phase as one bar, as wide as the budget; a part too small to see is left to the list below.
function bar(plan) {
  const parts = Object.entries(plan.phases[plan.where].parts);
  const whole = Math.max(plan.peak, plan.budget);
  const pieces = parts.map(([name, size], i) => h("i", { style: { width: `${(100 * size) / whole}%`, "--st-part": String(i) }, title: `${name}: ${gb(size)}` }));
  const limit = plan.budget && plan.peak > plan.budget ? h("u", { style: { left: `${(100 * plan.budget) / whole}%` }, title: `budget: ${gb(plan.budget)}` }) : null;
  return h("div", { class: ["st-fits-bar", !plan.fits && "is-over"], role: "img", "aria-label": `${gb(plan.peak)} of ${gb(plan.budget)}` }, pieces, limit);
}

function way(plan) {
  const { base_format, recomputed, block_offload, recorded, apart } = plan.chosen;
  return [["Base", base_format], ["Recomputed blocks", percent(recomputed)], ["Base in main memory", percent(block_offload)], ["Steps", recorded ? "recorded" : "one by one"], ["Text encoders", apart.includes("text") ? "block by block" : ""], ["VAE", apart.includes("vae") ? "on the processor" : ""]];
}

function details(plan) {
  const others = Object.entries(plan.phases).filter(([name]) => name !== plan.where).map(([name, phase]) => [`While ${name === "samples" ? "drawing samples" : name}`, gb(phase.bytes)]);
  return [
    h("p", { class: "st-dim" }, `Because: ${plan.why}.`),
    factList(way(plan)),
    h("h4", {}, `At the peak, ${plan.where}`),
    factList(Object.entries(plan.phases[plan.where].parts).map(([name, size]) => [name[0].toUpperCase() + name.slice(1), gb(size)])),
    others.length ? [h("h4", {}, "Other times"), factList(others)] : null,
  ];
}

export function mount(element, { cards }) {
  const choice = h("select", { class: "st-input", "aria-label": "Card" }, h("option", { value: "" }, "This machine"), cards.map((card) => h("option", { value: String(card) }, `Card: ${card} GB`)));
  const verdict = h("span", { class: "st-fits-verdict", role: "status" });
  const graph = h("div", {});
  const note = h("div", { class: "st-fits-note" });
  const inside = h("div", { class: "st-fits-inside" });
  const more = h("details", { class: "st-fits-more", hidden: true }, h("summary", {}, "What takes the memory"), inside);
  let asked = 0;
  let there = true;
  let missed = false;
  const show = (plan) => {
    verdict.replaceChildren(badge(plan.fits ? "Fits" : "Does not fit", plan.fits ? "good" : "bad"), h("span", {}, plan.budget ? `${gb(plan.peak)} of ${gb(plan.budget)}` : gb(plan.peak)));
    verdict.title = `on ${plan.card}`;
    graph.replaceChildren(bar(plan));
    note.replaceChildren(...plan.notes.map((text) => h("p", {}, `${text}.`)));
    inside.replaceChildren(...details(plan).flat(2).filter(Boolean));
    more.hidden = false;
  };
  const fail = (error) => {
    verdict.replaceChildren(h("span", { class: "st-dim" }, "No memory plan"));
    graph.replaceChildren();
    note.replaceChildren(h("p", {}, error.message));
    more.hidden = true;
  };
  const look = settled(async () => {
    missed = !there; // a form that is asked while the studio is away would make Gradio load the whole page anew
    if (missed) return;
    asked += 1;
    const own = asked;
    try {
      const plan = await call("train", "fits", { images: chosenSet()?.id, card: choice.value ? Number(choice.value) : null });
      if (own === asked) show(plan);
    } catch (error) {
      if (own === asked) fail(error);
    }
  }, WAIT);
  choice.addEventListener("change", () => {
    call("train", "fill", { values: { memory_budget: choice.value ? Number(choice.value) : null } }).then(look).catch(fail);
  });
  element.replaceChildren(h("section", { class: "st-fits", "aria-label": "Fits my card" }, h("div", { class: "st-fits-head" }, h("h3", {}, "Fits my card"), choice), verdict, graph, note, more));
  on("form-changed", ({ form }) => form === "train" && look());
  on("base-chosen", ({ form }) => form === "train" && look());
  on("set-chosen", look);
  on("connection", ({ open }) => {
    there = open;
    if (open && missed) look();
  });
  look();
}
