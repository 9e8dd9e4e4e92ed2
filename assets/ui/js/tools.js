// Tools for LoRAs: merge, resize, bake into a base, extract from a tuned model. Each is a job; its result is told when it is there.

import * as api from "./api.js";
import { say } from "./bus.js";
import { dialog } from "./dialogs.js";
import { button, h, keyed } from "./dom.js";
import { finished, save } from "./exporting.js";
import { bytes, count } from "./format.js";
import { show } from "./shell.js";
import { refresh, state } from "./state.js";
import { failed, toast } from "./toasts.js";

const DTYPES = [["stored", "As stored", "the number format of the base"], ["fp16", "fp16", "what everybody shares"], ["bf16", "bf16", "wide range, half the size"], ["fp32", "fp32", "exact, twice the size"]];
const percent = (share) => (share < 1e-6 ? "nothing was lost" : `${(100 * share).toFixed(2)} % of the change was lost`);
const field = (label, control, help = "") => h("label", {}, h("span", {}, label), control, help ? h("small", {}, help) : null);
const text = (value, label, rest = {}) => h("input", { class: "st-input", value, maxlength: "90", "aria-label": label, spellcheck: false, ...rest });
const number = (value, label, min, max, step) => h("input", { class: "st-number", type: "number", value: String(value), min: String(min), max: String(max), step: String(step), "aria-label": label });
const select = (label, items) => h("select", { class: "st-input", "aria-label": label }, items.map(([value, title]) => h("option", { value }, title)));

function choices(name, label, options, chosen = 0) {
  return h("fieldset", { class: "st-choice" }, h("legend", {}, label), options.map(([value, title, help, extra], i) => h("label", {}, h("input", { type: "radio", name, value, checked: i === chosen }), h("span", {}, h("b", {}, title), h("small", {}, help)), extra ? [h("span", { class: "st-spring" }), extra] : null)));
}

const picked = (form, name) => new FormData(form).get(name);

// Runs a tool and says what came of it; the queue shows it meanwhile.
async function start(kind, values, title, ready) {
  try {
    const job = await api.post(`/tools/${kind}`, values);
    toast(title, { detail: job.name, action: "Queue", act: () => show("queue"), seconds: 4 });
    ready(await finished(job.id));
  } catch (error) {
    failed(`${title.split(" ")[0]} failed`)(error);
  }
}

async function inLibrary(job) {
  await refresh("adapters");
  const made = state.adapters.find((item) => item.id.startsWith(job.id));
  const { layers, ranks, residual } = job.result;
  const rank = ranks[0] === ranks[1] ? `rank ${ranks[0]}` : `ranks ${ranks[0]} to ${ranks[1]}`;
  toast(`${made?.name ?? job.name} is in the library`, { tone: "good", detail: `${count(layers, "layer")} of ${rank}; ${percent(residual)}`, action: made ? "Show" : "", act: () => { show("library"); say("open-adapter", made.id); }, seconds: 12 });
}

// Rows of LoRAs with weights, the first one given; others of its family can be added.
function weights(item) {
  let rows = [{ name: item.name, weight: 1 }];
  const list = h("ul", { class: "st-weights" });
  const more = select("Add another LoRA", []);
  const make = (row) => {
    const input = number(row.weight, `Weight of ${row.name}`, -10, 10, 0.05);
    input.addEventListener("input", () => { row.weight = Number(input.value) || 0; });
    return h("li", {}, h("b", { title: row.name }, row.name), input, row.name === item.name ? null : button(`Remove ${row.name}`, { kind: "icon quiet small", symbol: "close", act: () => { rows = rows.filter((one) => one !== row); draw(); } }));
  };
  const draw = () => {
    keyed(list, rows, (row) => row.name, make);
    const others = state.adapters.filter((one) => one.family === item.family && !rows.some((row) => row.name === one.name));
    more.replaceChildren(h("option", { value: "" }, others.length ? "Add another LoRA …" : "No other LoRA of this family"), ...others.map((one) => h("option", { value: one.name }, one.name)));
    more.disabled = !others.length;
  };
  more.addEventListener("change", () => { if (more.value) { rows = [...rows, { name: more.value, weight: 1 }]; draw(); } });
  draw();
  return { node: h("div", { class: "st-weights-box" }, list, more), rows: () => rows };
}

export function mergeDialog(item) {
  const stack = weights(item);
  const rank = number(item.rank || 16, "Rank", 1, 4096, 1);
  const name = text(`${item.name}-merged`, "Name of the new LoRA");
  const form = h("form", { class: "st-form" }, stack.node, choices("method", "How", [["concat", "Exact", "the ranks add up, and so does the file"], ["svd", "To a rank", "smaller; what is lost is told", rank]]), field("Name", name));
  rank.addEventListener("focus", () => { form.querySelector("[value=svd]").checked = true; });
  const go = () => {
    const method = picked(form, "method");
    close();
    start("merge", { loras: stack.rows(), method, rank: method === "svd" ? Number(rank.value) : null, name: name.value.trim() || null }, "Merge started", inLibrary);
  };
  const close = dialog(`Merge ${item.name} with …`, form, [button("Merge", { kind: "primary", symbol: "layers", act: go })]);
}

export function resizeDialog(item) {
  const energy = number(99, "Share to keep in percent", 1, 100, 0.1);
  const rank = number(Math.max(1, Math.floor((item.rank || 16) / 2)), "Rank", 1, 4096, 1);
  const name = text(`${item.name}-small`, "Name of the new LoRA");
  const form = h("form", { class: "st-form" }, choices("by", "How small", [["energy", "By content", "percent of every layer to keep; ranks follow", energy], ["rank", "By rank", "the same largest rank for every layer", rank]]), field("Name", name));
  for (const [input, by] of [[energy, "energy"], [rank, "rank"]]) input.addEventListener("focus", () => { form.querySelector(`[value=${by}]`).checked = true; });
  const go = () => {
    const size = picked(form, "by") === "rank" ? { rank: Number(rank.value) } : { energy: Number(energy.value) / 100 };
    close();
    start("resize", { source: item.name, ...size, name: name.value.trim() || null }, "Resize started", inLibrary);
  };
  const close = dialog(`Resize ${item.name}`, form, [button("Resize", { kind: "primary", symbol: "layers", act: go })]);
}

export function bakeDialog(item) {
  const fitting = state.bases.filter((base) => base.family === item.family && !base.problem);
  if (!fitting.length) return toast("No base model fits this LoRA", { tone: "warn", detail: "Add one under Library, Base models." });
  const stack = weights(item);
  const base = select("Base model", fitting.map((one) => [one.name, one.title || one.name]));
  if (fitting.some((one) => one.name === item.base)) base.value = item.base;
  const name = text(`${base.value}-${item.name}`, "Name of the file");
  const form = h("form", { class: "st-form" }, field("Into", base), stack.node, choices("dtype", "Numbers", DTYPES), field("File name", name, "One .safetensors checkpoint, for every program that loads the base."));
  const go = () => {
    const values = { base: base.value, loras: stack.rows(), dtype: picked(form, "dtype"), name: name.value.trim() };
    close();
    start("bake", values, "Baking started", (job) => {
      const address = `/api/jobs/${api.id(job.id)}/export`;
      toast(`${job.name}.safetensors is ready`, { tone: "good", detail: bytes(job.result.bytes), action: "Save", act: () => save(address, `${job.name}.safetensors`), seconds: 60 });
    });
  };
  const close = dialog(`Bake ${item.name} into a base`, form, [button("Bake", { kind: "primary", symbol: "box", act: go })]);
  return close;
}

// item: the tuned model, one of the bases.
export function extractDialog(item) {
  const others = state.bases.filter((base) => base.family === item.family && base.name !== item.name && !base.problem);
  if (!others.length) return toast("There is no other base of this family", { tone: "warn", detail: "Add the model it was tuned from first." });
  const base = select("Tuned from", others.map((one) => [one.name, one.title || one.name]));
  const rank = number(32, "Largest rank", 1, 4096, 1);
  const name = text(`${item.name}-lora`, "Name of the new LoRA");
  const form = h("form", { class: "st-form" }, field("Tuned from", base), field("Largest rank", rank, "Higher keeps more of the difference in a larger file."), field("Name", name));
  const go = () => {
    close();
    start("extract", { tuned: item.name, base: base.value, rank: Number(rank.value), name: name.value.trim() || null }, "Extraction started", inLibrary);
  };
  const close = dialog(`Extract a LoRA from ${item.name}`, form, [button("Extract", { kind: "primary", symbol: "layers", act: go })]);
  return close;
}
