// Library, right: one LoRA with its facts, where it came from, and what can be done with it.

import * as api from "./api.js";
import { on, say } from "./bus.js";
import { ask } from "./dialogs.js";
import { badge, button, h, icon, picture } from "./dom.js";
import { exportDialog, save } from "./exporting.js";
import { factList } from "./facts.js";
import { ago, bytes, count } from "./format.js";
import { reportView } from "./report.js";
import { show } from "./shell.js";
import { job, refresh, state } from "./state.js";
import { failed, toast } from "./toasts.js";
import { bakeDialog, mergeDialog, resizeDialog } from "./tools.js";


async function remove(item, close) {
  try {
    const { token } = await api.del(`/adapters/${api.id(item.id)}`);
    close();
    await refresh("adapters");
    toast(`${item.name} deleted`, { action: "Undo", seconds: 12, act: () => api.post("/adapters/restore", { token }).then(() => refresh("adapters")).catch(failed("Could not bring it back")) });
  } catch (error) {
    failed("The LoRA was not deleted")(error);
  }
}

async function rename(item) {
  const [name] = await ask("Rename the LoRA", [{ label: "Name", value: item.name, help: "Also the name of its file: what <lora:name:1> finds." }], "Rename");
  if (!name || name === item.name) return;
  try {
    const renamed = await api.patch(`/adapters/${api.id(item.id)}`, { name });
    await refresh("adapters");
    say("open-adapter", renamed.id);
  } catch (error) {
    failed("The LoRA was not renamed")(error);
  }
}

function origin(item) {
  const run = item.run && job(item.run);
  if (!run) return null;
  return button(`Run of ${ago(run.created)}`, { kind: "small quiet", symbol: "train", act: () => { show("train"); say("open-run", run.id); } });
}

// What the file says of itself; it may come from anywhere, so it is text and nothing else.
function metadata(told) {
  const entries = Object.entries(told.metadata ?? {}).sort(([a], [b]) => a.localeCompare(b));
  if (!entries.length) return null;
  return h("details", { class: "st-meta" }, h("summary", {}, `Metadata · ${count(entries.length, "entry", "entries")}`), h("dl", {}, entries.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value).slice(0, 2000))))));
}

function content(item, close) {
  const cover = h("div", { class: "st-drawer-cover" }, item.preview ? picture(item.preview, `Preview of ${item.name}`) : icon("layers", 44));
  const more = h("div");
  const address = `/adapters/${api.id(item.id)}`;
  Promise.all([api.get(`${address}/inspect`), api.get(address)]).then(([told, full]) => more.replaceChildren(...[told.civitai ? factList([["Civitai version", told.civitai]]) : null, reportView(told, full.facts.report), metadata(told)].filter(Boolean)), failed("Could not look into the file"));
  return h("div", { class: "st-scroll" }, cover, h("div", { class: "st-pad st-about" },
    h("div", { class: "st-drawer-title" }, h("h2", {}, item.name), button("Rename", { kind: "icon quiet small", symbol: "edit", act: () => rename(item) })),
    h("div", { class: "st-actions" }, badge(item.family || "unknown family", "accent"), item.kind ? badge(item.kind) : null),
    h("div", { class: "st-actions" }, button("Use in Generate", { kind: "primary", symbol: "generate", act: () => { show("generate"); say("stack-add", { name: item.name }); } }), button("Export", { symbol: "download", act: () => exportDialog({ source: item.name, name: item.name }) })),
    item.trigger ? [h("h4", {}, "Trigger"), h("code", { class: "st-trigger" }, item.trigger)] : null,
    h("h4", {}, "Facts"),
    factList([["Base", item.base], ["Rank", item.rank || ""], ["Alpha", item.alpha || ""], ["Size", bytes(item.bytes)], ["Added", ago(item.created)], ["AutoV3", item.autov3?.slice(0, 12)], ["SHA-256", item.sha256.slice(0, 12)], ["From", origin(item)]]),
    h("h4", {}, "Tools"),
    h("div", { class: "st-actions" }, button("Merge with …", { kind: "small", symbol: "layers", act: () => mergeDialog(item) }), button("Resize", { kind: "small", symbol: "minus", act: () => resizeDialog(item) }), button("Bake", { kind: "small", symbol: "box", title: "Into a base model", act: () => bakeDialog(item) })),
    more,
    h("div", { class: "st-actions is-foot" }, button("Continue training", { kind: "small", symbol: "train", act: () => { show("train"); say("continue-from", { name: item.name }); } }), button("Save file", { kind: "small", symbol: "download", act: () => save(item.file) }), h("span", { class: "st-spring" }), button("Delete", { kind: "small danger", symbol: "trash", act: () => remove(item, close) }))));
}

export function drawer({ close }) {
  const node = h("aside", { class: "st-drawer", "aria-label": "About the LoRA", hidden: true });
  let shown = "";
  const draw = (item) => {
    node.hidden = !item;
    shown = item?.id ?? "";
    if (item) node.replaceChildren(h("div", { class: "st-drawer-close" }, button("Close", { kind: "icon quiet", symbol: "close", act: close })), content(item, close));
  };
  on("picked", draw);
  on("adapters", () => { if (shown && !state.adapters.some((item) => item.id === shown)) close(); });
  node.addEventListener("keydown", (event) => event.key === "Escape" && close());
  return node;
}

