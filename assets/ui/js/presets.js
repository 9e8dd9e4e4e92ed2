// Presets: words and settings under a name; chosen, kept, replaced and forgotten from one menu.

import * as api from "./api.js";
import { dialog, popover } from "./dialogs.js";
import { button, h } from "./dom.js";
import { call } from "./form.js";
import { setStack } from "./stack.js";
import { failed, toast } from "./toasts.js";

const about = (preset) => [preset.prompt, ...Object.entries(preset.settings).map(([name, value]) => (name === "loras" ? `${value.length} LoRAs` : `${name.replaceAll("_", " ")} ${value}`))].filter(Boolean).join(", ");

async function use(name) {
  try {
    const preset = await call("generate", "preset", { name });
    if (preset.settings.loras) setStack(preset.settings.loras);
    toast(`${name} is on`, { tone: "good", seconds: 3 });
  } catch (error) {
    failed(`${name} was not applied`)(error);
  }
}

async function forget(preset, node) {
  try {
    const gone = await api.del(`/presets/${api.id(preset.name)}`);
    node.remove();
    toast(`${preset.name} is forgotten`, { action: "Undo", seconds: 10, act: () => api.put(`/presets/${api.id(preset.name)}`, { prompt: gone.prompt, negative_prompt: gone.negative_prompt, settings: gone.settings }).catch(failed("It was not brought back")) });
  } catch (error) {
    failed("It was not forgotten")(error);
  }
}

async function keep(loras) {
  let given;
  try {
    given = await call("generate", "given");
  } catch (error) {
    failed("The settings could not be read")(error);
    return;
  }
  if (loras.length) given = { ...given, loras };
  const field = (label, help = "") => { const input = h("input", { class: "st-input", "aria-label": label, maxlength: "400" }); return [h("label", {}, h("span", {}, label), input, help ? h("small", {}, help) : null), input]; };
  const [nameRow, name] = field("Name");
  const [wordsRow, words] = field("Words", "Go behind your prompt, or around it: photo of {prompt}, 35 mm");
  const [notRow, not] = field("Words to avoid");
  const boxes = Object.entries(given).map(([key, value]) => { const box = h("input", { type: "checkbox", checked: true, "aria-label": key }); return [key, value, box]; });
  const list = boxes.length ? h("fieldset", { class: "st-choice is-settings" }, h("legend", {}, "Settings"), boxes.map(([key, value, box]) => h("label", {}, box, h("span", {}, h("b", {}, key.replaceAll("_", " ")), h("small", {}, key === "loras" ? value.map((row) => row.name).join(", ") : String(value)))))) : null;
  const save = async () => {
    try {
      await api.put(`/presets/${api.id(name.value.trim())}`, { prompt: words.value.trim(), negative_prompt: not.value.trim(), settings: Object.fromEntries(boxes.filter(([, , box]) => box.checked).map(([key, value]) => [key, value])) });
      close();
      toast(`${name.value.trim()} is kept`, { tone: "good", seconds: 3 });
    } catch (error) {
      failed("The preset was not kept")(error);
    }
  };
  const form = h("form", { class: "st-form" }, nameRow, wordsRow, notRow, list);
  form.addEventListener("submit", (event) => { event.preventDefault(); save(); });
  const close = dialog("Keep as a preset", form, [button("Keep", { kind: "primary", act: save })]);
  name.focus();
}

export async function openPresets(anchor, loras = null) {
  const rows = loras ?? (await import("./stack.js")).stack();
  let items = [];
  try {
    items = (await api.get("/presets")).items;
  } catch (error) {
    failed("The presets could not be read")(error);
    return;
  }
  const list = h("div", { class: "st-menu", "aria-label": "Presets" });
  const close = popover(anchor, h("div", { class: "st-presets" }, list, button("Keep these settings as a preset", { kind: "small", symbol: "plus", act: () => { close(); keep(rows); } })), { width: 300, label: "Presets" });
  const row = (preset) => {
    const node = h("div", { class: "st-preset" }, h("button", { type: "button", class: "st-menu-item", title: about(preset), on: { click: () => { close(); use(preset.name); } } }, h("span", {}, preset.name, h("small", {}, about(preset)))), button(`Forget ${preset.name}`, { kind: "icon quiet small", symbol: "trash", act: () => forget(preset, node) }));
    return node;
  };
  list.append(...(items.length ? items.map(row) : [h("p", { class: "st-dim st-pad" }, "None yet. A preset keeps words and settings under a name.")]));
}
