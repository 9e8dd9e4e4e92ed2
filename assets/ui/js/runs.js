// Runs as rows of a stack: NAME@live is a training as it is now, NAME@STEP one of its checkpoints.

import { state } from "./state.js";

const REF = /^(.+)@(live|\d+)$/;

export const runOf = (name) => REF.exec(name);

// The newest of that name, which is what the studio takes; or the one of that id.
const find = (ref) => state.jobs.find((job) => job.id === ref) ?? state.jobs.find((job) => job.kind === "train" && job.name === ref);

export function rowOfRun(name) {
  const [, ref, step] = runOf(name) ?? [];
  const job = ref && find(ref);
  if (!job) return undefined;
  const live = step === "live" && job.state === "running";
  const at = step === "live" ? (live ? `step ${job.step}` : "as it ended") : `step ${step}`;
  return { id: job.id, name, label: `run ${job.name}, ${at}`, title: `run ${job.name}`, at, family: job.family, trigger: job.settings?.trigger ?? "", live };
}

// Trainings that have done a step.
export function liveRuns() {
  const running = state.jobs.filter((job) => job.kind === "train" && job.state === "running" && job.step > 0);
  return running.map((job) => rowOfRun(`${find(job.name)?.id === job.id ? job.name : job.id}@live`));
}
