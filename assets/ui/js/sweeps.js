// Sweeps: several trainings that differ in the values of one or two settings, and where they ended side by side.

import * as api from "./api.js";
import { on, say } from "./bus.js";
import { dialog } from "./dialogs.js";
import { badge, button, h, picture } from "./dom.js";
import { figure, small } from "./format.js";
import { call } from "./form.js";
import { lightbox } from "./lightbox.js";
import { isActive, job } from "./state.js";
import { failed, toast } from "./toasts.js";

const MOST = 64; // runs of one sweep
const AXES = 2;
const AGAIN = 2000; // milliseconds until runs that go on are looked at anew
const NOTHING = { samples: [], held: null, loss: null };
let known = [];

export const sweepOf = (id) => known.find((sweep) => sweep.jobs.includes(id));

export async function refreshSweeps() {
  try {
    known = (await api.get("/sweeps")).items;
    say("sweeps");
  } catch (error) {
    failed("Could not read the sweeps")(error);
  }
}

const parts = (text) => text.split([";", "|"].find((mark) => text.includes(mark)) ?? ",").map((part) => part.trim()).filter(Boolean);

// Which settings, and which values; the form gives all others.
export function sweepDialog(settings, images) {
  const rows = Array.from({ length: AXES }, (_, i) => {
    const choice = h("select", { class: "st-input", "aria-label": `Setting ${i + 1}` }, i ? h("option", { value: "" }, "nothing else") : null, settings.map((one) => h("option", { value: one.name }, one.label)));
    const values = h("input", { class: "st-input", "aria-label": `Values ${i + 1}`, maxlength: "400", autocomplete: "off", spellcheck: "false" });
    return { choice, values, node: h("div", { class: "st-sweep-row" }, choice, values) };
  });
  const words = h("p", { class: "st-dim", role: "status" });
  const trouble = h("p", { class: "st-refused", role: "alert", hidden: true });
  const over = () => rows.filter(({ choice, values }) => choice.value && values.value.trim()).map(({ choice, values }) => `${choice.value}=${values.value.trim()}`);
  const n = () => rows.reduce((product, { choice, values }) => product * (choice.value && values.value.trim() ? parts(values.value).length : 1), over().length ? 1 : 0);
  const draw = () => {
    for (const { choice, values } of rows) {
      const one = settings.find((setting) => setting.name === choice.value);
      values.placeholder = one?.values || { learning_rate: "1e-4, 2e-4, 4e-4", rank: "8, 16, 32", steps: "200, 400" }[choice.value] || "values, between commas";
      values.hidden = !choice.value;
    }
    const runs = n();
    words.textContent = runs ? `${runs} runs, all with one seed and the form's other settings.` : "One run for every value, and for every combination of two settings.";
    go.lastChild.textContent = runs > 1 ? `Start ${runs} runs` : "Start the sweep";
    if (runs > 1 && runs <= MOST) go.removeAttribute("aria-disabled");
    else go.setAttribute("aria-disabled", "true");
    go.title = runs > MOST ? `At most ${MOST} runs` : runs > 1 ? "" : "Name two values or more";
  };
  const go = button("Start the sweep", { kind: "primary", symbol: "play", act: () => start() });
  async function start() {
    trouble.hidden = true;
    try {
      const made = await call("train", "sweep", { images, over: over() }, 60000);
      close();
      await refreshSweeps();
      toast(`${made.n} runs are in the queue`, { tone: "good", detail: "Compare shows them side by side.", action: "Compare", seconds: 15, act: () => compare(sweepOf(made.id)) });
      say("open-run", made.id);
    } catch (error) {
      trouble.textContent = error.message;
      trouble.hidden = false;
    }
  }
  for (const { choice, values } of rows) { choice.addEventListener("change", draw); values.addEventListener("input", draw); }
  const form = h("form", { class: "st-form" }, h("div", { class: "st-sweep" }, rows.map(({ node }) => node)), words, trouble);
  form.addEventListener("submit", (event) => { event.preventDefault(); if (!go.hasAttribute("aria-disabled")) start(); });
  const close = dialog("Sweep over settings", form, [go]);
  draw();
  rows[0].values.focus();
}

// What one run of a sweep has of its own, in words.
function own(sweep, record) {
  const told = (value) => (typeof value === "number" ? (Number.isInteger(value) ? String(value) : small(value)) : Array.isArray(value) ? value.join(", ") : String(value ?? ""));
  const values = sweep.rows.map((row) => row.split("=")[0].replaceAll("-", "_").trim()).map((setting) => `${setting.replaceAll("_", " ")} ${told(record.config?.[setting])}`.trim());
  return record.config ? values.join(", ") : record.name;
}

async function look(id) {
  const { points, events } = await api.get(`/jobs/${api.id(id)}/history`);
  const samples = events.filter((event) => event.kind === "sample");
  const last = Math.max(0, ...samples.map((event) => event.step));
  const held = events.filter((event) => event.kind === "validation").map((event) => event.loss).filter(Number.isFinite);
  const recent = points.slice(-20).map(([, loss]) => loss);
  return { samples: samples.filter((event) => event.step === last), held: held.length ? Math.min(...held) : null, loss: recent.length ? recent.reduce((sum, loss) => sum + loss, 0) / recent.length : null };
}

// One run a row: its values, where it stands, its loss and its last samples. The sheet as a picture is one button away.
export async function compare(sweep) {
  if (!sweep) return;
  const body = h("div", { class: "st-compare" });
  const sheet = h("a", { class: "st-button", href: `/api/sweeps/${api.id(sweep.id)}/sheet`, target: "_blank", rel: "noopener" }, h("span", {}, "As one picture"));
  const close = dialog(`Sweep of ${sweep.name}`, body, [h("span", { class: "st-dim" }, sweep.rows.join("  ·  ")), h("span", { class: "st-spring" }), sheet], { wide: true });
  let records = sweep.jobs.map(job).filter(Boolean);
  const found = new Map();
  const gone = new Set();
  const fill = () => {
    const lowest = (key) => Math.min(...[...found.values()].map((one) => one[key] ?? Infinity));
    const cell = (one, key) => h("td", { class: one && one[key] !== null && one[key] === lowest(key) && "is-best" }, figure(one?.[key] ?? null, 4));
    const frames = (record, one) => (one?.samples ?? []).map((sample, i, all) => {
      const src = (of) => `/api/jobs/${api.id(record.id)}/files/${of.path.split("/").map(encodeURIComponent).join("/")}`;
      return h("button", { type: "button", class: "st-frame", title: sample.prompt, "aria-label": `${own(sweep, record)}: ${sample.prompt}`, on: { click: () => lightbox(all.map((of) => ({ src: src(of), title: own(sweep, record), text: of.prompt })), i) } }, picture(src(sample), sample.prompt));
    });
    const row = (record, one) => h("tr", {}, h("td", {}, button(own(sweep, record), { kind: "small quiet", title: "Open this run", act: () => { close(); say("open-run", record.id); } })), h("td", {}, isActive(record) && record.state === "running" ? `${record.step} / ${record.total}` : badge(record.state, { finished: "good", failed: "bad" }[record.state] ?? "")), cell(one, "loss"), cell(one, "held"), h("td", {}, h("div", { class: "st-compare-frames" }, frames(record, one))));
    sheet.hidden = ![...found.values()].some((one) => one.samples.length);
    body.replaceChildren(h("table", { class: "st-table" }, h("thead", {}, h("tr", {}, ["Run", "State", "Loss", "Held out", "Last samples"].map((text) => h("th", {}, text)))), h("tbody", {}, records.map((record) => row(record, found.get(record.id))))));
  };
  // A run that the page does not hold, as one just made or an old one, is asked for; one that was removed is left out.
  const record = async (id) => {
    const held = job(id);
    if (held?.config || gone.has(id)) return held; // a line of the queue has no settings
    try {
      return await api.get(`/jobs/${api.id(id)}`);
    } catch (error) {
      if (error.status === 404) gone.add(id);
      return error.status === 404 ? null : (held ?? records.find((one) => one.id === id));
    }
  };
  const read = async () => {
    if (!body.isConnected) return;
    try {
      records = (await Promise.all(sweep.jobs.map(record))).filter(Boolean);
      fill();
      await Promise.all(records.map(async ({ id }) => found.set(id, await look(id).catch(() => found.get(id) ?? NOTHING))));
      fill();
    } finally {
      if (records.length < sweep.jobs.length - gone.size || records.some(isActive)) setTimeout(read, AGAIN);
    }
  };
  fill();
  await read();
}

on("resync", refreshSweeps);
refreshSweeps();
