// The bar at the bottom: connection, device, the running job with progress and ETA, queue, disk.

import { on, say } from "./bus.js";
import { h, icon } from "./dom.js";
import { bytes, count, duration } from "./format.js";
import { show } from "./shell.js";
import { state } from "./state.js";

export const remaining = (job) => (job.total && job.step_seconds && job.message !== "not responding" ? (job.total - job.step) * job.step_seconds : NaN);

export function words(job) {
  if (job.state === "queued") return "waiting";
  if (job.state !== "running") return job.state;
  if (job.total && job.step) return [`${job.step} / ${job.total}`, job.message].filter(Boolean).join(" · ");
  return job.phase || job.message || "starting";
}

export function mount(element) {
  const light = h("span", { class: "st-light" });
  const device = h("span", {}, "connecting …");
  const line = h("button", { type: "button", class: "st-status-job", title: "Open the running job" });
  const queue = h("button", { type: "button", class: "st-status-item", title: "Open the queue", on: { click: () => show("queue") } }, icon("queue", 14), h("span", {}, "idle"));
  const disk = h("span", { class: "st-status-item", title: "Free space where the studio keeps its data" }, icon("disk", 14), h("span", {}, "–"));
  element.replaceChildren(h("footer", { class: "st-status", "aria-label": "Status" }, h("span", { class: "st-status-item" }, light, icon("chip", 14), device), line, h("span", { class: "st-spring" }), queue, disk));
  const track = h("span", { class: "st-track", role: "progressbar", "aria-label": "Running job", "aria-valuemin": 0, "aria-valuemax": 100 }, h("i"));
  const drawJob = () => {
    const running = state.jobs.find((job) => job.state === "running");
    line.hidden = !running;
    const waiting = state.jobs.filter((job) => job.state === "queued").length;
    queue.lastChild.textContent = waiting ? `${count(waiting, "job")} waiting` : running ? "nothing waiting" : "idle";
    if (!running) return;
    const share = running.total ? Math.min(100, (100 * running.step) / running.total) : 0;
    track.firstChild.style.width = `${share}%`;
    track.classList.toggle("is-busy", !running.step);
    track.setAttribute("aria-valuenow", String(Math.round(share)));
    const eta = remaining(running);
    line.replaceChildren(icon(running.kind === "train" ? "train" : "generate", 14), h("b", {}, running.name), track, h("span", {}, words(running)), Number.isFinite(eta) ? h("span", { class: "st-dim" }, `${duration(eta)} left`) : "");
  };
  line.addEventListener("click", () => {
    const running = state.jobs.find((job) => job.state === "running");
    if (!running) return;
    show(running.kind === "train" ? "train" : running.kind === "generate" ? "generate" : "queue");
    if (running.kind === "train") say("open-run", running.id);
  });
  on("jobs", drawJob);
  on("connection", ({ open }) => { light.dataset.tone = open ? "good" : "bad"; if (!open) device.textContent = "no connection"; });
  on("status", (message) => {
    const status = message.status ?? message;
    light.dataset.tone = "good";
    const used = status.devices.map((one) => (one.memory ? `${one.title} · ${bytes(one.memory)}` : one.title));
    device.textContent = status.backend === "this machine" ? used.join(", ") || "no device" : status.backend;
    device.title = status.trouble || status.devices.map((one) => (one.base ? `${one.base} is loaded` : "no base is loaded")).join(", ");
    const silent = status.devices.filter((one) => one.worker === "silent");
    if (silent.length) {
      device.textContent = `${silent.map((one) => one.title).join(", ")} · not responding`;
      device.title = "The worker process lives but has said nothing for a while. It goes on by itself if it was stopped or starved; cancelling its job ends it.";
      light.dataset.tone = "warn";
    }
    if (status.trouble) light.dataset.tone = "bad";
    disk.lastChild.textContent = `${bytes(status.disk_free)} free`;
  });
  drawJob();
}
