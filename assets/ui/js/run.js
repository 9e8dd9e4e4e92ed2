// Train, right: one run as it happens, or as it was.

import * as api from "./api.js";
import { on, remember, remembered, say } from "./bus.js";
import { against } from "./against.js";
import { chart } from "./chart.js";
import { menu } from "./dialogs.js";
import { badge, button, empty, h, icon, keyed, setReason } from "./dom.js";
import { exportDialog } from "./exporting.js";
import { bytes, count, duration, figure, small } from "./format.js";
import { History } from "./history.js";
import { evaluateRun, forkRun } from "./judging.js";
import { byLevel, probeCard } from "./levels.js";
import { liveRuns } from "./runs.js";
import { filmstrip } from "./samples.js";
import { show } from "./shell.js";
import { isActive, job, state } from "./state.js";
import { compare, sweepOf } from "./sweeps.js";
import { failed, toast } from "./toasts.js";

const TONES = { running: "accent", paused: "warn", queued: "", finished: "good", failed: "bad", cancelled: "", interrupted: "warn" };

let open = remembered("run", "");
let history = null;

const act = (verb, said) => () => api.post(`/jobs/${api.id(open)}/${verb}`).then(() => said && toast(said, { tone: "good", seconds: 4 })).catch(failed("That did not work"));

function figures() {
  const cells = ["Step", "Left", "Loss", "Rate × scale", "Gradient", "Per step"].map((label) => h("div", { class: "st-figure" }, h("small", {}, label), h("b", {}, "–")));
  const set = (i, text, title = "") => { cells[i].lastChild.textContent = text; cells[i].title = title; };
  return {
    node: h("div", { class: "st-figures" }, cells),
    draw(record) {
      const points = history ? [...history.points] : [];
      const recent = points.slice(-20).map(([, loss]) => loss);
      const mean = recent.length ? recent.reduce((a, b) => a + b, 0) / recent.length : null;
      set(0, record.total ? `${record.step} / ${record.total}` : "–");
      const spent = record.started && record.finished ? record.finished - record.started : NaN;
      cells[1].firstChild.textContent = isActive(record) ? "Left" : "Took";
      set(1, isActive(record) ? duration(record.eta ?? NaN) : duration(spent));
      set(2, figure(mean, 3), "Mean of the last 20 steps");
      const last = history?.rates.get(points.reduce((most, [step]) => Math.max(most, step), 0));
      const scale = history?.facts.scale;
      set(3, last?.rate ? `${small(last.rate)}${scale ? ` × ${figure(scale, 3)}` : ""}` : "–", "Learning rate of the last step, and what the product of the factors is multiplied by (alpha / rank)");
      set(4, figure(last?.gradient ?? null, 3), "Length of the last step's gradient, before it was clipped");
      set(5, record.step_seconds ? (record.step_seconds < 1 ? `${Math.round(record.step_seconds * 1000)} ms` : `${figure(record.step_seconds, 3)} s`) : "–");
    },
  };
}

function controls() {
  const sample = button("Sample now", { symbol: "camera", kind: "small", title: "Draw the preview pictures at the next step", act: act("sample", "Pictures come with the next step") });
  const pin = button("Pin this step", { symbol: "pin", kind: "small", title: "Keep the weights of the next step as a checkpoint", act: act("pin", "The next step becomes a checkpoint") });
  const finish = button("Finish now and keep", { symbol: "flag", kind: "small", title: "Stop after this step and write the LoRA as it is", act: act("finish", "Finishing after this step") });
  const cancel = button("Cancel", { symbol: "stop", kind: "small danger", title: "Stop; checkpoints stay  ·  Esc", act: act("cancel") });
  const pause = button("Pause", { symbol: "clock", kind: "small", title: "Stop after this step with a checkpoint, so that other jobs get the device", act: act("pause", "Pausing after this step") });
  const go = button("Use in Generate", { symbol: "generate", kind: "small primary", act: () => useRun() });
  const now = button("Use live", { symbol: "generate", kind: "small", title: "Put the run into the stack as it is, while it goes on", act: () => useLive() });
  const save = button("Export", { symbol: "download", kind: "small", act: () => exportDialog({ source: open, name: job(open)?.name ?? "lora" }) });
  const more = button("Train further", { symbol: "plus", kind: "small", title: "Add steps to this run", act: (_, at) => menu(at, [100, 250, 500, 1000].map((n) => ({ label: `${n} more steps`, symbol: "plus", act: () => api.post(`/jobs/${api.id(open)}/extend`, { steps: n }).catch(failed("The run was not extended")) }))) });
  const judge = button("Evaluate", { symbol: "check", kind: "small", title: "Measure every checkpoint by pictures the run has not seen", act: () => evaluateRun(open) });
  const resume = button("Go on", { symbol: "play", kind: "small primary", title: "From the last checkpoint", act: act("resume") });
  const again = button("Run again", { symbol: "retry", kind: "small", act: act("retry") });
  const node = h("div", { class: "st-run-controls" }, sample, pin, now, finish, pause, cancel, go, save, more, judge, resume, again);
  return {
    node,
    draw(record) {
      const running = record.state === "running";
      const stepping = running && record.step > 0;
      [sample, pin, now, finish].forEach((one) => { one.hidden = !running; setReason(one, stepping ? "" : "Once the first step is done"); });
      pause.hidden = !isActive(record) || record.cancelling;
      cancel.hidden = !isActive(record) && record.state !== "paused";
      setReason(cancel, record.cancelling ? "It stops after this step" : "");
      const usable = !isActive(record) && (history?.checkpoints.size ?? 0) > 0;
      const kept = state.adapters.some((one) => one.run === record.id);
      save.hidden = !usable;
      more.hidden = !usable || record.state !== "finished";
      judge.hidden = !usable;
      resume.hidden = record.state !== "paused" && (!usable || record.state === "finished");
      go.hidden = isActive(record) || !kept;
      again.hidden = isActive(record) || ["finished", "paused"].includes(record.state);
    },
  };
}

function useRun() {
  const made = state.adapters.find((one) => one.run === open && one.name === job(open)?.name) ?? state.adapters.find((one) => one.run === open);
  if (!made) return;
  show("generate");
  say("stack-add", { name: made.name });
}

function useLive() {
  const found = liveRuns().find((one) => one.id === open);
  if (!found) return;
  show("generate");
  say("stack-add", { name: found.name });
}

function checkpoints() {
  const list = h("ul", { class: "st-checkpoints" });
  const node = h("section", { class: "st-card" }, h("h3", {}, "Checkpoints"), list);
  const row = (item) => h("li", {}, icon("flag", 15), h("b", {}, `Step ${item.step}`), item.best ? badge("best", "good") : null, h("span", { class: "st-dim" }, bytes(item.bytes)), h("span", { class: "st-spring" }), button("Fork", { kind: "small quiet", symbol: "plus", title: "A new run from these weights, with other settings", act: () => forkRun(open, item.step) }), button("Add to library", { kind: "small quiet", symbol: "library", act: () => keep(item) }), button("Export", { kind: "small quiet", symbol: "download", act: () => exportDialog({ source: `${open}@${item.step}`, name: `${job(open)?.name ?? "lora"}-${item.step}` }) }));
  return {
    node,
    draw() {
      node.hidden = !history?.checkpoints.size;
      if (history) keyed(list, marked(history), (item) => `${open}-${item.step}-${item.best}`, row);
    },
  };
}

// Checkpoints, newest first; the best is the one with the lowest held-out loss.
function marked(told) {
  const best = [...told.looks.values()].sort((a, b) => a.step - b.step).findLast((look) => look.best);
  return [...told.checkpoints.values()].sort((a, b) => b.step - a.step).map((item) => ({ ...item, best: item.step === best?.step }));
}

async function keep(item) {
  try {
    const made = await api.post("/jobs/export", { source: `${open}@${item.step}`, library: true });
    toast(`${made.name} goes into the library`, { tone: "good", action: "Open the library", act: () => show("library") });
  } catch (error) {
    failed("The checkpoint was not added")(error);
  }
}

function log() {
  const list = h("ul", { class: "st-log" });
  const node = h("details", { class: "st-card st-logcard" }, h("summary", {}, "Log"), list);
  return {
    node,
    draw(record) {
      const notes = [...(history?.notes.values() ?? [])].sort((a, b) => a.time - b.time);
      node.firstChild.textContent = `Log · ${count(notes.length, "line")}`;
      if (notes.some((item) => item.tone === "warn") && !node.dataset.told) { node.open = true; node.dataset.told = record.id; }
      keyed(list, notes, (item) => `${item.time} ${item.text}`, (item) => h("li", { class: item.tone && `is-${item.tone}` }, h("time", {}, new Date(item.time * 1000).toLocaleTimeString([], { hour12: false })), h("span", {}, item.text)));
    },
  };
}

function runPicker() {
  const choose = h("button", { type: "button", class: "st-run-name", "aria-haspopup": "menu", title: "Look at another run" });
  choose.addEventListener("click", () => {
    const runs = state.jobs.filter((one) => one.kind === "train").slice(0, 14);
    if (runs.length) menu(choose, runs.map((one) => ({ label: one.name, symbol: isActive(one) ? "train" : one.state === "finished" ? "check" : "clock", hint: one.state, act: () => openRun(one.id) })));
  });
  return choose;
}

async function openRun(id) {
  open = id;
  remember("run", id);
  const mine = new History(id);
  history = mine;
  say("run-changed");
  try {
    await mine.load();
  } catch (error) {
    if (error.status === 404 && open === id) { open = ""; history = null; } else failed("The run could not be read")(error);
  }
  if (history === mine || !open) say("run-changed");
}

export function mount(element) {
  const name = runPicker();
  const stateBadge = h("span");
  const bar = h("div", { class: "st-track is-tall", role: "progressbar", "aria-label": "Training", "aria-valuemin": 0, "aria-valuemax": 100 }, h("i"));
  const words = h("p", { class: "st-run-words" });
  const [numbers, tools, plot, levels, probe, strip, points, recipe, lines] = [figures(), controls(), chart(), byLevel(), probeCard(), filmstrip(), checkpoints(), against(), log()];
  const swept = button("Sweep", { kind: "small", symbol: "layers", title: "The runs of this sweep, side by side", act: () => compare(sweepOf(open)) });
  tools.node.append(swept);
  const legend = h("span", { class: "st-legend" }, h("span", {}, h("i", { class: "is-trained" }), "trained"), h("span", {}, h("i", { class: "is-held" }), "held out, with the 95 % interval"));
  const body = h("div", { class: "st-run" }, h("header", { class: "st-run-head" }, h("div", { class: "st-run-title" }, name, stateBadge), tools.node), words, bar, numbers.node, h("section", { class: "st-card" }, h("h3", {}, "Loss", legend), plot.node), levels.node, probe.node, strip.node, points.node, recipe.node, lines.node);
  const none = empty("train", "Nothing has been trained yet", ["Choose an image set on the left, look over the settings, and press Start. The demo base trains in a minute, even without a graphics card."]);
  none.append(h("ol", { class: "st-steps" }, ["Pictures", "Settings", "Start", "Watch it learn here"].map((text, i) => h("li", {}, h("b", {}, String(i + 1)), text))));
  element.replaceChildren(h("section", { class: "st-panel is-plain", "aria-label": "Run" }, h("div", { class: "st-scroll" }, none, body)));
  let asked = false;
  const draw = () => {
    asked = false;
    const record = job(open);
    none.hidden = Boolean(record) || !state.loaded.jobs;
    body.hidden = !record;
    if (!record) return;
    name.replaceChildren(h("span", {}, record.name), icon("down", 15));
    stateBadge.replaceChildren(badge(record.cancelling && record.state === "running" ? "stopping" : record.state, TONES[record.state]));
    const share = record.total ? (100 * record.step) / record.total : 0;
    bar.firstChild.style.width = `${record.state === "finished" ? 100 : share}%`;
    bar.classList.toggle("is-busy", record.state === "running" && !record.step);
    bar.dataset.state = record.state;
    bar.setAttribute("aria-valuenow", String(Math.round(share)));
    words.textContent = record.state === "queued" ? "Waits for its turn." : [record.message, record.remedy, record.kept].filter(Boolean).join(" ");
    words.hidden = !words.textContent || (record.state === "running" && record.step > 0) || record.state === "finished";
    words.dataset.state = record.state;
    numbers.draw(record);
    tools.draw(record);
    plot.set(history ? [...history.points].sort((a, b) => a[0] - b[0]) : [], record.total, history ? [...history.looks.values()].sort((a, b) => a.step - b.step) : [], history?.rates);
    legend.hidden = !history?.looks.size;
    levels.set(history ? [...history.looks.values()].sort((a, b) => a.step - b.step) : []);
    probe.set(record.result?.probe);
    strip.draw(record, history);
    points.draw();
    recipe.draw(record);
    const sweep = sweepOf(record.id);
    swept.hidden = !sweep;
    if (sweep) swept.lastChild.textContent = `Compare ${sweep.jobs.length} runs`;
    lines.draw(record);
  };
  const redraw = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };
  on("run-changed", redraw);
  on("adapters", redraw);
  on("sweeps", redraw);
  on("view", redraw);
  on("open-run", openRun);
  on("event", ({ job: id, event }) => { if (id === open && history) { history.take(event); redraw(); } });
  on("resync", () => open && openRun(open));
  on("cancel-train", () => {
    const record = job(open);
    if (record && isActive(record)) toast(`Cancel ${record.name}?`, { tone: "warn", detail: "Checkpoints made so far stay.", action: "Cancel the run", act: act("cancel") });
  });
  on("jobs", () => {
    if (!job(open)) {
      const runs = state.jobs.filter((one) => one.kind === "train");
      const first = runs.find((one) => one.state === "running") ?? runs[0];
      if (first && first.id !== open) return openRun(first.id);
    }
    return redraw();
  });
  if (open) openRun(open);
  draw();
}

export const runAdapter = (id) => adapter(id);
