// Generate, under the stack: do its rows fit the base, do they get into each other's way, and which weights would do better.

import * as api from "./api.js";
import { on, settled } from "./bus.js";
import { badge, button, h, icon } from "./dom.js";
import { current } from "./shell.js";
import { toast } from "./toasts.js";

const REST = 700; // milliseconds without a move until a stack is looked at
const WORDS = { fine: ["No interference", "good", "check"], watch: ["Worth a look", "warn", "info"], clash: ["In each other's way", "bad", "warn"] };
const WHOLE = /^(\d+) of \1 layers fit(, with [^,]*)?$/; // nothing of the LoRA is left over

// What a stack and its base come to, in one text: what was found about it is not asked again.
const keyOf = (rows, base) => JSON.stringify([rows, base]);
// A name at the front stays as it is written.
const sentence = (text) => `${text.replace(/^(together|these|one) /i, (word) => word[0].toUpperCase() + word.slice(1))}${/[.!?]$/.test(text) ? "" : "."}`;

// rows(): the stack as it is sent; base(): the chosen base; label(name): how a row is called on the page; weigh(weights): take weights over.
export function interference({ rows, base, label, weigh }) {
  const node = h("div", { class: "st-verdict", role: "status", hidden: true });
  let shown = "";
  let asked = "";
  let waiting = "";
  let found = null;
  let trouble = "";

  const named = (text) => rows().reduce((words, row) => words.replaceAll(row.name, label(row.name)), text);

  function apply(suggested) {
    const before = Object.fromEntries(rows().map((row) => [row.name, row.weight]));
    weigh(suggested);
    toast("The suggested weights are set", { tone: "good", seconds: 8, action: "Undo", act: () => weigh(before) });
  }

  function draw() {
    const used = rows();
    node.hidden = !used.length;
    if (node.hidden) return;
    const stale = shown !== keyOf(used, base());
    node.classList.toggle("is-stale", stale);
    node.setAttribute("aria-busy", String(stale && Boolean(asked)));
    if (trouble && !stale) return node.replaceChildren(h("div", { class: "st-verdict-head" }, badge("Not compared", "warn"), h("span", { class: "st-spring" }), again()), h("p", {}, trouble));
    if (!found) return node.replaceChildren(h("div", { class: "st-verdict-head is-waiting" }, h("span", { class: "st-spinner" }), h("span", {}, "Looking at the stack …")));
    const misfits = Object.entries(found.fits).filter(([, words]) => !WHOLE.test(words));
    const alone = found.rows.length < 2;
    const [words, tone, symbol] = misfits.length ? ["Does not fit whole", "warn", "warn"] : alone ? ["Fits the base", "good", "check"] : WORDS[found.verdict];
    const said = alone && found.verdict === "fine" ? [] : found.sentences;
    const suggested = Object.entries(found.suggested);
    return node.replaceChildren(
      h("div", { class: "st-verdict-head", data: { tone } }, icon(symbol, 15), h("b", {}, words), h("span", { class: "st-spring" }), stale ? h("span", { class: "st-spinner" }) : again()),
      ...[...misfits.map(([name, text]) => `${label(name)}: ${text}`), ...said.map((text) => sentence(named(text)))].map((text) => h("p", {}, text)),
      suggested.length ? h("div", { class: "st-verdict-foot" }, h("span", {}, suggested.map(([name, weight]) => h("span", { class: "st-weight" }, label(name), h("b", {}, String(weight))))), button("Apply", { kind: "small primary", title: "Set these weights", act: () => apply(found.suggested) })) : "",
      figures(),
    );
  }

  const again = () => button("Look again", { kind: "icon quiet small", symbol: "retry", act: () => { shown = ""; look(); } });

  function figures() {
    if (!found.pairs.length) return "";
    const percent = (value) => `${Math.round(100 * value)} %`;
    const pairs = found.pairs.map((pair) => h("tr", {}, h("td", {}, `${label(pair.a)} × ${label(pair.b)}`), h("td", {}, percent(pair.overlap)), h("td", {}, percent(pair.shared)), h("td", {}, String(pair.layers))));
    return h("details", {}, h("summary", {}, "Figures"), h("table", { class: "st-table" }, h("thead", {}, h("tr", {}, h("th", {}, "Pair"), h("th", { title: "1: the same change; 0: nothing in common; below: they cancel" }, "Overlap"), h("th", { title: "Part of the smaller one that lies in directions of the other" }, "Shared"), h("th", { title: "Layers that both change" }, "Layers"))), h("tbody", {}, pairs)));
  }

  async function look() {
    const [used, chosen] = [rows(), base()];
    const key = keyOf(used, chosen);
    if (!used.length || !chosen || key === shown || key === asked) return;
    asked = key;
    draw();
    try {
      const told = await api.post("/tools/compare", { loras: used, base: chosen });
      if (asked !== key) return; // an answer about a stack of before
      [found, trouble] = [told, ""];
    } catch (error) {
      if (asked !== key) return;
      [found, trouble] = [null, sentence(error.message)];
    }
    [shown, asked] = [key, ""];
    draw();
    soon();
  }

  const soon = settled(() => current() === "generate" && look(), REST);
  on("view", soon);
  // Called often, as a run in the stack counts its steps: the rest begins anew only when the stack is another one.
  function changed() {
    const key = keyOf(rows(), base());
    draw();
    if (key !== waiting) soon();
    waiting = key;
  }
  return { node, changed };
}
