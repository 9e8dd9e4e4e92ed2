// Which checkpoint is best, and where to go from one: evaluation and forks of a run.

import * as api from "./api.js";
import { ask, dialog, menu } from "./dialogs.js";
import { h } from "./dom.js";
import { say } from "./bus.js";
import { figure } from "./format.js";
import { state } from "./state.js";
import { failed, toast } from "./toasts.js";

const LOOK_MILLISECONDS = 700;

// By the pictures that the run held out; one that held none out is measured by a set it has not seen.
export async function evaluateRun(id) {
  const { settings } = await api.get(`/jobs/${api.id(id)}`);
  if (settings.validation_fraction) return begin(id, null);
  const anchor = document.querySelector(".st-run-controls");
  menu(anchor, state.sets.map((set) => ({ label: `Measure by ${set.name}`, symbol: "pictures", act: () => begin(id, set.id) })));
}

async function begin(id, images) {
  try {
    const made = await api.post(`/jobs/${api.id(id)}/evaluate`, { images });
    toast("The checkpoints are being measured", { tone: "good", detail: "The verdict comes up when it is done." });
    watch(made.id);
  } catch (error) {
    failed("The run was not evaluated")(error);
  }
}

function watch(id) {
  const look = async () => {
    const record = await api.get(`/jobs/${api.id(id)}`).catch(() => null);
    if (!record) return;
    if (record.state === "finished") verdict(record);
    else if (["queued", "running", "paused"].includes(record.state)) setTimeout(look, LOOK_MILLISECONDS);
    else toast("The run was not evaluated", { tone: "bad", detail: [record.message, record.remedy].filter(Boolean).join(" ") });
  };
  look();
}

export function verdict({ name, result }) {
  const cell = (row) => (row.step === result.best_step ? "best" : row.as_good ? "as good as the best" : `worse by ${figure(row.worse[0], 2)} to ${figure(row.worse[1], 2)}`);
  const between = (row) => (row.interval ? `${figure(row.interval[0], 3)} to ${figure(row.interval[1], 3)}` : "");
  const rows = result.checkpoints.map((row) => h("tr", { class: row.step === result.best_step && "is-best" }, h("td", {}, String(row.step)), h("td", {}, figure(row.loss, 4)), h("td", {}, between(row)), h("td", {}, cell(row))));
  const table = h("table", { class: "st-table" }, h("thead", {}, h("tr", {}, ["Step", "Held-out loss", "95 % interval", "Verdict"].map((text) => h("th", {}, text)))), h("tbody", {}, rows));
  dialog(`Checkpoints of ${name}`, h("div", {}, table, h("p", { class: "st-dim", style: { marginTop: "12px" } }, `Measured by ${result.held_out} pictures with the same noise for every checkpoint.`)), [], { wide: true });
}

// A new run from a checkpoint's weights.
export async function forkRun(id, step) {
  const { settings: was } = await api.get(`/jobs/${api.id(id)}`);
  const [rate, steps] = await ask(`Fork from step ${step}`, [
    { label: "Learning rate", value: String(was.learning_rate ?? "") },
    { label: "Steps", value: String(was.steps ?? ""), help: "All other settings are those of the run; duplicate it from the queue to change more." },
  ], "Start the fork");
  const changes = { ...(rate ? { learning_rate: rate } : {}), ...(steps ? { steps } : {}) };
  try {
    const made = await api.post(`/jobs/${api.id(`${id}@${step}`)}/fork`, { changes });
    toast(`${made.name} is in the queue`, { tone: "good" });
    say("open-run", made.id);
  } catch (error) {
    failed("The run was not forked")(error);
  }
}
