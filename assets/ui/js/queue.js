// Queue: every job with its state and progress, in the order they run; pause, order, cancel, run again, open, remove with undo.

import * as api from "./api.js";
import { on, say } from "./bus.js";
import { menu } from "./dialogs.js";
import { badge, button, empty, h, icon, keyed } from "./dom.js";
import { ago, count, duration } from "./format.js";
import { verdict } from "./judging.js";
import { show } from "./shell.js";
import { isActive, refresh, state } from "./state.js";
import { words } from "./status.js";
import { failed, toast } from "./toasts.js";

const SYMBOLS = { train: "train", generate: "generate", export: "download", caption: "text", evaluate: "check", check: "layers", merge: "layers", resize: "minus", probe: "minus", extract: "layers", bake: "box" };
const KINDS = { train: "training", generate: "pictures", export: "export", caption: "captions", evaluate: "evaluation", check: "stack check", merge: "merge", resize: "resize", probe: "rank probe", extract: "extraction", bake: "baking" };
const TONES = { running: "accent", paused: "warn", finished: "good", failed: "bad", interrupted: "warn" };
const ORDER = { running: 0, queued: 1, paused: 2 };
const LAST = 1e6; // a place behind every job
const SHOWN = 200; // waiting jobs with a row of their own

const post = (job, verb, body) => api.post(`/jobs/${api.id(job.id)}/${verb}`, body).catch(failed("That did not work"));

// What a job that ended came to, in words.
function outcome({ kind, state: how, result }) {
  if (how !== "finished" || !result) return "";
  if (kind === "caption") return [count(result.captioned ?? 0, "caption"), result.kept ? `${result.kept} kept` : ""].filter(Boolean).join(", ");
  if (kind === "generate" && result.images) return `${result.images.length} drawn`;
  if (kind === "evaluate" && result.checkpoints) return `step ${result.best_step} is best of ${result.checkpoints.length}`;
  if (kind === "check" && result.verdict) return result.sentences?.[0] ?? result.verdict;
  return "";
}

function open(job) {
  if (job.kind === "evaluate" && job.state === "finished") verdict(job);
  if (job.kind === "caption") { show("train"); say("open-set", job.settings?.images); }
  if (job.kind === "train") { show("train"); say("open-run", job.id); }
  if (job.kind === "generate") show("generate");
  if (["merge", "resize", "probe", "extract"].includes(job.kind)) { show("library"); const made = state.adapters.find((item) => item.id.startsWith(job.id)); if (made) say("open-adapter", made.id); }
}

async function remove(job) {
  try {
    const { token } = await api.del(`/jobs/${api.id(job.id)}`);
    await refresh("jobs");
    toast(`${job.name} removed`, { detail: "What it made stays.", action: "Undo", act: () => api.post("/jobs/restore", { token }).then(() => refresh("jobs")).catch(failed("Could not bring it back")) });
  } catch (error) {
    failed("The job was not removed")(error);
  }
}

async function copyCommand(job) {
  try {
    const { command, cut } = await api.get(`/jobs/${api.id(job.id)}/command`);
    await navigator.clipboard.writeText(command);
    toast("The command line is copied", { tone: "good", detail: cut ? `Paths were cut down to their names; in a terminal, “lora-studio jobs command ${job.id}” prints them whole.` : "" });
  } catch (error) {
    failed("The command line was not copied")(error);
  }
}

const canPause = (job) => job.state === "queued" || (job.state === "running" && job.kind === "train" && !job.cancelling);

// Running ones, then those that wait in the order they will run, then the newest.
function before(a, b) {
  const rank = (job) => ORDER[job.state] ?? 3;
  return rank(a) - rank(b) || (a.state === "queued" ? b.priority - a.priority || a.queued - b.queued || (a.id < b.id ? -1 : 1) : isActive(a) ? a.created - b.created : b.created - a.created);
}

function choices(job) {
  const items = [];
  if (job.state === "queued") items.push({ label: "Run next", symbol: "upload", act: () => post(job, "move", { place: 0 }) }, { label: "Run last", symbol: "download", act: () => post(job, "move", { place: LAST }) });
  if (["queued", "paused"].includes(job.state)) items.push({ label: "Priority up", symbol: "chevron-up", hint: job.priority ? String(job.priority) : "", act: () => post(job, "priority", { priority: job.priority + 1 }) }, { label: "Priority down", symbol: "down", act: () => post(job, "priority", { priority: job.priority - 1 }) });
  if (canPause(job)) items.push({ label: job.state === "queued" ? "Hold back" : "Pause and free the device", symbol: "clock", act: () => post(job, "pause") });
  if (job.state === "paused") items.push({ label: "Go on", symbol: "play", act: () => post(job, "resume") }, { label: "Cancel", symbol: "stop", act: () => post(job, "cancel") });
  if (job.kind === "train" && ["cancelled", "failed", "interrupted"].includes(job.state)) items.push({ label: "Go on from the last checkpoint", symbol: "play", act: () => post(job, "resume") });
  items.push(isActive(job) ? { label: "Duplicate", symbol: "plus", act: () => post(job, "duplicate", { changes: {} }) } : { label: "Run again", symbol: "retry", act: () => post(job, "retry") });
  items.push({ label: "Copy the command line", symbol: "copy", act: () => copyCommand(job) });
  if (!isActive(job)) items.push({ label: "Remove", symbol: "trash", danger: true, act: () => remove(job) });
  return items;
}

function makeRow(job) {
  const bar = h("span", { class: "st-track" }, h("i"));
  const node = h("li", { class: "st-row is-job", tabIndex: 0 }, h("span", { class: "st-row-icon" }, icon(SYMBOLS[job.kind] ?? "queue", 20)), h("div", { class: "st-row-text" }, h("b"), h("small")), h("div", { class: "st-row-progress" }, bar, h("small")), h("span", { class: "st-row-state" }), h("span", { class: "st-row-tools" }));
  node.addEventListener("click", (event) => event.target.closest("button") || open(node.job));
  node.addEventListener("keydown", (event) => { if (event.target === node && event.key === "Enter") open(node.job); });
  return node;
}

function fillRow(node, job) {
  node.job = job;
  const [text, progress, badgePlace, tools] = [node.children[1], node.children[2], node.children[3], node.children[4]];
  text.firstChild.textContent = job.name;
  const trouble = ["failed", "interrupted"].includes(job.state) ? [job.message, job.remedy].filter(Boolean).join(" ") : "";
  const urgent = job.priority && ["queued", "paused"].includes(job.state) ? `priority ${job.priority}` : "";
  text.lastChild.textContent = trouble || [KINDS[job.kind] ?? job.kind, job.base, urgent, outcome(job), ago(job.created)].filter(Boolean).join(" · ");
  text.lastChild.classList.toggle("st-misfit", Boolean(trouble));
  progress.classList.toggle("is-idle", !isActive(job));
  progress.firstChild.hidden = job.state !== "running";
  progress.firstChild.firstChild.style.width = `${job.total ? (100 * job.step) / job.total : 0}%`;
  progress.firstChild.classList.toggle("is-busy", job.state === "running" && !job.step);
  const took = job.started && job.finished ? `took ${duration(job.finished - job.started)}` : "";
  progress.lastChild.textContent = job.state === "running" ? [words(job), job.eta ? `${duration(job.eta)} left` : ""].filter(Boolean).join(" · ") : took;
  if (node.dataset.state === `${job.state}${job.cancelling}`) return;
  node.dataset.state = `${job.state}${job.cancelling}`;
  badgePlace.replaceChildren(badge(job.cancelling && isActive(job) ? "stopping" : job.state, TONES[job.state]));
  const cancel = isActive(job) ? button(`Cancel ${job.name}`, { kind: "icon quiet", symbol: "stop", reason: job.cancelling ? "It stops after this step" : "", act: () => post(job, "cancel") }) : null;
  tools.replaceChildren(...[cancel, choices(job).length ? button(`More for ${job.name}`, { kind: "icon quiet", symbol: "more", act: (_, at) => menu(at, choices(node.job)) }) : null].filter(Boolean));
}

export function mount(element) {
  const list = h("ul", { class: "st-rows" });
  const none = empty("queue", "The queue is empty", ["Training runs, pictures, exports and tools wait here for their turn. They go on when this page is closed."], button("Train", { kind: "primary", symbol: "train", act: () => show("train") }), button("Generate", { symbol: "generate", act: () => show("generate") }));
  const title = h("h2", {}, "Queue");
  const more = h("p", { class: "st-dim", role: "note", hidden: true });
  element.replaceChildren(h("section", { class: "st-queue", "aria-label": "Queue" }, h("header", { class: "st-view-head" }, title, more), h("div", { class: "st-scroll" }, none, list)));
  const draw = () => {
    none.hidden = state.jobs.length > 0 || !state.loaded.jobs;
    const active = state.jobs.filter(isActive).length;
    title.textContent = active ? `Queue · ${count(active, "job")} to do` : "Queue";
    const waiting = state.jobs.filter((job) => job.state === "queued").length;
    more.hidden = waiting <= SHOWN;
    more.textContent = `The next ${SHOWN} of ${count(waiting, "waiting job")} are listed.`;
    let place = 0;
    const listed = [...state.jobs].sort(before).filter((job) => job.state !== "queued" || place++ < SHOWN);
    keyed(list, listed, (job) => job.id, makeRow, fillRow);
  };
  on("jobs", draw);
  on("removed", ({ job }) => { state.jobs = state.jobs.filter((one) => one.id !== job); say("jobs", state.jobs); });
  draw();
}
