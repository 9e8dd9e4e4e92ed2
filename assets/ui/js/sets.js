// Train, left: choose or make an image set, bring pictures in, read and write captions.

import * as api from "./api.js";
import { on, remember, remembered, say, settled } from "./bus.js";
import { command } from "./commands.js";
import { ask, menu } from "./dialogs.js";
import { badge, button, empty, h, icon, keyed, picture } from "./dom.js";
import { call } from "./form.js";
import { count } from "./format.js";
import { choose, onDrop, send } from "./intake.js";
import { show } from "./shell.js";
import { refresh, state } from "./state.js";
import { failed, toast } from "./toasts.js";

const visited = remembered("form.train", null) !== null; // then the form comes as it was left
let chosen = remembered("set", "");
let shown = null;

export const chosenSet = () => shown;

async function create(name = "") {
  const [title, trigger] = await ask("New image set", [{ label: "Name", value: name, placeholder: "my-cat" }, { label: "Trigger word", placeholder: "a rare word such as mycat", help: "Calls the LoRA later; put in front of captions that lack it." }], "Create");
  if (!title) return null;
  const made = await api.post("/sets", { name: title, trigger });
  await refresh("sets");
  await select(made.id);
  return made;
}

// quiet: the form stays as it is. begun: what a person wrote after that moment stays, though the set itself has yet to come.
async function select(id, quiet = false, begun = performance.now()) {
  chosen = id;
  remember("set", id);
  shown = null;
  say("set-chosen", null);
  if (!id) return;
  try {
    const found = await api.get(`/sets/${api.id(id)}`);
    if (chosen !== id) return;
    shown = found;
    say("set-chosen", shown);
    if (!quiet) await call("train", "choose_set", { name: shown.name, trigger: shown.trigger }, 15000, begun);
  } catch (error) {
    if (error.status === 404) chosen = "";
    else failed("Could not open the image set")(error);
    say("set-chosen", null);
  }
}

async function bringIn(files) {
  if (!files.length) return;
  if (!shown || shown.builtin) {
    toast(shown ? "The sample sets stay as they are" : "No image set is chosen", { detail: "A new set is made for these pictures." });
    if (!(await create(""))) return;
  }
  const target = shown.id;
  say("intake", { share: 0, files: files.length });
  try {
    const report = await send(`/sets/${api.id(target)}/pictures`, files, (share) => say("intake", { share, files: files.length }));
    say("intake", null);
    say("intake-report", report);
    const left = report.rejected.length ? `${count(report.rejected.length, "file")} could not be taken` : "";
    toast(`${count(report.accepted, "picture")} added`, { tone: report.accepted ? "good" : "warn", detail: left });
  } catch (error) {
    say("intake", null);
    failed("The pictures were not added")(error);
  }
  await refresh("sets");
  await select(target, true);
}

async function edit(set) {
  const [name, trigger] = await ask("Image set", [{ label: "Name", value: set.name }, { label: "Trigger word", value: set.trigger }], "Save");
  try {
    await api.patch(`/sets/${api.id(set.id)}`, { name: name || set.name, trigger });
    await refresh("sets");
    await select(set.id);
  } catch (error) {
    failed("The set was not changed")(error);
  }
}

const MODEL = "caption-model";

async function captionBy(set, replace) {
  const help = "A folder or a hub id of a model that describes pictures: BLIP, BLIP-2, GIT, Florence-2, Qwen-VL. The first use of a hub id downloads it.";
  const fields = [{ label: "Model", value: remembered(MODEL, ""), placeholder: "Salesforce/blip-image-captioning-base", help }, { label: "Prompt", placeholder: "may stay empty", help: "Words a caption begins with, or what a model that chats is asked." }];
  const [model, prompt] = await ask(replace ? "Write all captions anew" : "Write missing captions", fields, "Caption");
  try {
    const job = await api.post("/jobs/caption", { images: set.id, model: model || fields[0].placeholder, prompt, replace });
    if (model) remember(MODEL, model);
    captioning.set(job.id, set.id);
    toast(`${set.name} waits for its captions`, { detail: "The queue shows how far it is." });
  } catch (error) {
    failed("The pictures are not captioned")(error);
  }
}

const captioning = new Map(); // jobs that this page has asked for -> their sets

on("job", async ({ job }) => {
  if (job.kind !== "caption" || job.state === "running" || job.state === "queued" || !captioning.has(job.id)) return;
  const id = captioning.get(job.id);
  captioning.delete(job.id);
  await refresh("sets");
  if (shown?.id === id) await select(id, true);
  const undo = () => api.post(`/jobs/${api.id(job.id)}/uncaption`).then(() => refresh("sets")).then(() => select(id, true)).catch(failed("The captions were not put back"));
  const done = job.state === "finished";
  toast(done ? `${count(job.result.captioned ?? 0, "caption")} written` : `Captioning ${job.name}: ${job.state}`, { detail: [job.message, job.remedy].filter(Boolean).join(" "), tone: done ? "good" : "warn", action: "Undo", act: undo, seconds: 20 });
});

async function removeSet(set) {
  try {
    const { token } = await api.del(`/sets/${api.id(set.id)}`);
    await refresh("sets");
    await select(state.sets[0]?.id || "");
    toast(`${set.name} removed`, { action: "Undo", act: () => api.post("/sets/restore", { token }).then(() => refresh("sets")).then(() => select(set.id)).catch(failed("Could not bring it back")), seconds: 10 });
  } catch (error) {
    failed("The set was not removed")(error);
  }
}

function card(set) {
  const node = h("button", { type: "button", class: "st-setcard", role: "radio", on: { click: () => select(set.id) } });
  return node;
}

function fillCard(node, set) {
  node.setAttribute("aria-checked", String(set.id === chosen));
  const text = JSON.stringify([set.name, set.pictures, set.trigger, set.cover]);
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.title = set.description || set.name;
  node.replaceChildren(set.cover ? picture(`${set.cover}?side=192`, "") : h("div", { class: "st-nocover" }, icon("pictures", 22)), h("span", { class: "st-setcard-text" }, h("b", {}, set.title || set.name), h("small", {}, [count(set.pictures, "picture"), set.trigger].filter(Boolean).join(" · "))));
}

function pictureRow(item) {
  const state_ = h("span", { class: "st-saved", "aria-live": "polite" });
  const text = h("textarea", { class: "st-caption", rows: 2, spellcheck: false, placeholder: "No caption yet: describe what is to be seen", "aria-label": `Caption of ${item.name}` });
  const write = settled(async () => {
    try {
      await api.patch(`/sets/${api.id(shown.id)}/pictures/${api.id(item.name)}`, { caption: text.value });
      state_.textContent = "saved";
      setTimeout(() => { state_.textContent = ""; }, 1500);
    } catch (error) {
      failed("The caption was not saved")(error);
    }
  }, 500);
  text.addEventListener("input", () => { state_.textContent = "…"; write(); });
  const drop = button(`Remove ${item.name}`, { kind: "icon quiet small", symbol: "close", act: () => removePicture(item) });
  return h("li", { class: "st-picture" }, h("a", { href: item.url, target: "_blank", rel: "noopener", title: `${item.name} · ${item.width} × ${item.height}` }, picture(`${item.thumbnail}?side=192`, item.name)), h("div", { class: "st-picture-text" }, text, h("div", { class: "st-picture-foot" }, h("small", {}, `${item.name} · ${item.width}×${item.height}`), state_, drop)));
}

async function removePicture(item) {
  const set = shown;
  try {
    const { token } = await api.del(`/sets/${api.id(set.id)}/pictures/${api.id(item.name)}`);
    await select(set.id, true);
    toast(`${item.name} removed`, { action: "Undo", act: () => api.post("/sets/restore", { token }).then(() => select(set.id, true)).catch(failed("Could not bring it back")) });
  } catch (error) {
    failed("The picture was not removed")(error);
  }
}

function zone() {
  const bar = h("span", { class: "st-track", hidden: true }, h("i"));
  const text = h("span", {}, h("b", {}, "Drop pictures, a folder or a zip"), h("small", {}, "PNG, JPEG, WebP … with captions as .txt beside them"));
  const node = h("button", { type: "button", class: "st-drop", "aria-label": "Add pictures", on: { click: async () => bringIn(await choose({ accept: "image/*,.txt,.zip" })) } }, icon("upload", 20), text, bar);
  onDrop(node, bringIn);
  on("intake", (progress) => {
    bar.hidden = !progress;
    if (!progress) return;
    bar.firstChild.style.width = `${100 * progress.share}%`;
    bar.classList.toggle("is-busy", progress.share >= 1);
  });
  return node;
}

function rejects() {
  const node = h("details", { class: "st-rejects", hidden: true });
  on("intake-report", (report) => {
    node.hidden = !report.rejected.length;
    node.open = true;
    node.replaceChildren(h("summary", {}, icon("warn", 15), `${count(report.rejected.length, "file")} not taken`), h("ul", {}, report.rejected.slice(0, 100).map((item) => h("li", {}, h("b", {}, item.name), " ", item.message))));
  });
  on("set-chosen", (set) => { if (!set) node.hidden = true; });
  return node;
}

function detail() {
  const list = h("ul", { class: "st-pictures", "aria-label": "Pictures" });
  const head = h("div", { class: "st-sethead" });
  const node = h("div", { class: "st-setdetail" }, head, zone(), rejects(), list);
  on("set-chosen", (set) => {
    node.hidden = !set;
    if (!set) return;
    const captioned = set.pictures.filter((item) => item.caption).length;
    const more = button("More", { kind: "icon quiet", symbol: "more", act: (_, at) => menu(at, [{ label: "Write missing captions", symbol: "text", act: () => captionBy(set, false) }, { label: "Write all captions anew", symbol: "text", act: () => captionBy(set, true) }, { label: "Name and trigger word", symbol: "edit", act: () => edit(set) }, { label: "Remove this set", symbol: "trash", danger: true, act: () => removeSet(set) }]) });
    head.replaceChildren(h("div", { class: "st-sethead-text" }, h("h3", {}, set.title || set.name), h("p", {}, set.trigger ? [h("span", {}, "trigger "), h("code", {}, set.trigger)] : "no trigger word", h("span", {}, ` · ${captioned} of ${set.pictures.length} captioned`))), set.builtin ? badge("sample") : more);
    keyed(list, set.pictures, (item) => `${set.id}/${item.name}`, pictureRow, (row, item) => {
      const text = row.querySelector("textarea");
      if (document.activeElement !== text) text.value = item.caption;
      text.readOnly = set.builtin;
      row.querySelector(".st-button").hidden = set.builtin;
    });
  });
  return node;
}

const newSet = () => create().catch(failed("The set was not made"));

export function mount(element) {
  command({ id: "new-set", title: "New image set", symbol: "pictures", run: () => { show("train"); newSet(); } });

  const cards = h("div", { class: "st-setcards", role: "radiogroup", "aria-label": "Image sets" });
  const none = empty("pictures", "Start with pictures", ["10 to 30 of one style or one subject are a good beginning. Drop them here, or a zip of them."], button("New image set", { kind: "primary", symbol: "plus", act: newSet }));
  const panel = h("section", { class: "st-panel", "aria-label": "Image set" }, h("header", { class: "st-panel-head" }, h("h2", {}, "Pictures"), h("span", { class: "st-spring" }), button("New set", { kind: "small", symbol: "plus", act: newSet })), h("div", { class: "st-scroll" }, cards, none, detail()));
  onDrop(panel, bringIn);
  element.replaceChildren(panel);
  const draw = () => {
    none.hidden = state.sets.length > 0 || !state.loaded.sets;
    keyed(cards, state.sets, (set) => set.id, card, fillCard);
  };
  let begun = false;
  on("sets", () => {
    draw();
    if (!begun) {
      begun = true;
      select(state.sets.some((set) => set.id === chosen) ? chosen : state.sets[0]?.id || "", visited, 0);
    }
  });
  on("set-chosen", draw);
  on("open-set", (ref) => { const set = state.sets.find((one) => one.id === ref || one.name === ref); if (set) select(set.id, true); });
  if (state.loaded.sets) say("sets", state.sets);
}
