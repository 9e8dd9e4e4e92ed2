// What the whole page knows: sets, jobs, adapters, bases. Kept fresh by the stream; parts hear "sets", "jobs", "adapters", "bases".

import * as api from "./api.js";
import { on, say, settled } from "./bus.js";
import { failed } from "./toasts.js";

export const state = { sets: [], jobs: [], adapters: [], bases: [], status: null, loaded: { sets: false, jobs: false, adapters: false, bases: false } };

const SOURCES = { sets: "/sets", jobs: "/jobs", adapters: "/adapters?limit=500", bases: "/bases" };

const hearing = new Set(); // for each list that is on its way, the jobs that the stream told of meanwhile

// The newest jobs, and every one that runs or waits however old it is; what the stream told newer of stays, and what it told of since the list was made.
async function allJobs() {
  const heard = new Set();
  hearing.add(heard);
  const [recent, waiting] = await Promise.all([api.get("/jobs"), api.get("/jobs/queue")]).finally(() => hearing.delete(heard));
  const listed = new Set(recent.items.map((one) => one.id));
  const found = [...recent.items, ...waiting.items.filter((one) => !listed.has(one.id))];
  const held = new Map(state.jobs.map((one) => [one.id, one]));
  const newest = (one) => ((held.get(one.id)?.updated ?? 0) > one.updated ? held.get(one.id) : one);
  const there = new Set(found.map((one) => one.id));
  return [...state.jobs.filter((one) => heard.has(one.id) && !there.has(one.id)), ...found.map(newest)];
}

export async function refresh(name) {
  try {
    state[name] = name === "jobs" ? await allJobs() : (await api.get(SOURCES[name])).items;
    state.loaded[name] = true;
    say(name, state[name]);
  } catch (error) {
    failed(`Could not read the ${name}`)(error);
  }
}

const soon = Object.fromEntries(Object.keys(SOURCES).map((name) => [name, settled(() => refresh(name), 60)]));

on("changed", ({ what }) => soon[what]?.());
on("resync", () => Object.values(soon).forEach((act) => act()));
on("job", ({ job }) => {
  hearing.forEach((heard) => heard.add(job.id));
  const at = state.jobs.findIndex((other) => other.id === job.id);
  if (at < 0) state.jobs = [job, ...state.jobs];
  else state.jobs = state.jobs.with(at, job);
  say("jobs", state.jobs);
});
on("status", (message) => { state.status = message.status ?? message; });

export const job = (id) => state.jobs.find((candidate) => candidate.id === id);
export const adapter = (name) => state.adapters.find((candidate) => candidate.name === name || candidate.id === name);
export const base = (name) => state.bases.find((candidate) => candidate.name === name);
export const isActive = (job) => job.state === "running" || job.state === "queued";

on("event", ({ event }) => {
  if (event.kind === "exported" || event.kind === "finished") soon.adapters();
});
on("job", ({ job: record }) => { if (record.state === "finished") soon.adapters(); });
