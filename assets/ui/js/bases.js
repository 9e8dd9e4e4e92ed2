// Library, second tab: base models, those that ship with the studio and registered ones.

import * as api from "./api.js";
import { on } from "./bus.js";
import { ask } from "./dialogs.js";
import { badge, button, h, icon, keyed } from "./dom.js";
import { bytes } from "./format.js";
import { refresh, state } from "./state.js";
import { failed, toast } from "./toasts.js";
import { extractDialog } from "./tools.js";

async function add() {
  const [name, path, encoders] = await ask("Add a base model", [{ label: "Name", placeholder: "my-sdxl" }, { label: "Folder or .safetensors file on this machine", placeholder: "/models/sdxl.safetensors", help: "It stays where it is; nothing is copied." }, { label: "Text encoders and VAE from (only for transformer-only files)", placeholder: "a diffusers folder" }], "Add");
  try {
    const made = await api.post("/bases", { name, path, encoders: encoders || null });
    await refresh("bases");
    toast(`${made.name} is ready`, { tone: "good", detail: made.family_title });
  } catch (error) {
    failed("The base was not added")(error);
  }
}

async function remove(item) {
  try {
    const { token } = await api.del(`/bases/${api.id(item.name)}`);
    await refresh("bases");
    toast(`${item.name} removed from the list`, { action: "Undo", act: () => api.post("/bases/restore", { token }).then(() => refresh("bases")).catch(failed("Could not bring it back")) });
  } catch (error) {
    failed("The base was not removed")(error);
  }
}

function row(item) {
  return h("li", { class: "st-row" }, h("span", { class: "st-row-icon" }, icon("box", 20)), h("div", { class: "st-row-text" }, h("b", {}, item.title), h("small", {}, [item.name, bytes(item.bytes), item.licence].filter(Boolean).join(" · ")), item.problem ? h("small", { class: "st-misfit" }, item.problem) : null), badge(item.family_title || item.family, "accent"), item.problem || item.builtin ? null : button("Extract a LoRA", { kind: "small", symbol: "layers", title: "What this model has more than its base", act: () => extractDialog(item) }), item.builtin ? badge("comes with the studio") : button(`Remove ${item.name}`, { kind: "icon quiet", symbol: "trash", act: () => remove(item) }));
}

export function basesTab() {
  const list = h("ul", { class: "st-rows" });
  const node = h("div", { class: "st-scroll st-bases", hidden: true }, h("div", { class: "st-bases-head" }, h("p", { class: "st-dim" }, "A LoRA belongs to the family of the base it was trained on. Add a diffusers folder or a single .safetensors checkpoint; a hub model comes with “lora-studio base download”."), button("Add a base", { kind: "primary", symbol: "plus", act: add })), list);
  const draw = () => keyed(list, state.bases, (item) => `${item.name} ${item.problem}`, row);
  on("bases", draw);
  draw();
  return node;
}
