// Generate, centre: the picture being made, or the one looked at.

import { on, say } from "./bus.js";
import { command } from "./commands.js";
import { button, empty, h, icon, setReason } from "./dom.js";
import { images, removeSelected, select, selected, step } from "./images.js";
import { onDrop } from "./intake.js";
import { lightbox } from "./lightbox.js";
import { openSheet } from "./sheet.js";
import { recall, recallFile, recallPicture } from "./recall.js";
import { current } from "./shell.js";
import { isActive, job, state } from "./state.js";
import * as api from "./api.js";
import { failed, toast } from "./toasts.js";
import { duration } from "./format.js";

let follow = "";
let shownJob = null;
let index = 0;
let live = null;

const active = () => state.jobs.filter((job) => job.kind === "generate" && isActive(job));

const training = () => state.jobs.find((one) => one.kind === "train" && one.state === "running");

// A picture waits for the device: the training gives it away, and gets it back when somebody says so.
async function makeRoom() {
  const run = training();
  if (!run) return;
  try {
    await api.post(`/jobs/${api.id(run.id)}/pause`);
    toast(`${run.name} pauses after this step`, { detail: "It goes on from there.", action: "Go on", seconds: 60, act: () => api.post(`/jobs/${api.id(run.id)}/resume`).catch(failed("The run does not go on")) });
  } catch (error) {
    failed("The run was not paused")(error);
  }
}

function progress() {
  const bar = h("span", { class: "st-track is-tall", role: "progressbar", "aria-label": "Drawing" }, h("i"));
  const words = h("b");
  const rest = h("small");
  const cancel = button("Cancel", { kind: "small", symbol: "stop", title: "Esc", act: () => say("cancel-generate") });
  const pause = button("Pause it", { kind: "small", symbol: "clock", title: "It stops after this step with a checkpoint, and the picture comes next", hidden: true, act: () => makeRoom() });
  const node = h("div", { class: "st-drawing", hidden: true }, h("div", { class: "st-drawing-words" }, words, rest, h("span", { class: "st-spring" }), pause, cancel), bar);
  return {
    node,
    draw(job) {
      node.hidden = !job;
      if (!job) return;
      const first = job.state === "queued" && training();
      pause.hidden = !first;
      setReason(pause, first?.message === "pausing" ? "It stops after this step" : "");
      const count = job.settings?.grid?.length ? job.settings.grid.reduce((n, axis) => n * axis.values.length, 1) : job.settings?.count ?? 1;
      const done = job.step && job.total;
      words.textContent = job.state === "queued" ? (first ? `Waits for ${first.name}` : "Waits for its turn") : done ? `Step ${job.step} of ${job.total}${count > 1 ? ` · picture ${Math.min(index + 1, count)} of ${count}` : ""}` : job.message || "Loading the base";
      rest.textContent = job.eta ? `${duration(job.eta)} left` : "";
      bar.firstChild.style.width = `${done ? (100 * job.step) / job.total : 0}%`;
      bar.classList.toggle("is-busy", job.state === "running" && !done);
      setReason(cancel, job.cancelling ? "It stops after this step" : "");
    },
  };
}

function declare() {
  const here = () => current() === "generate" && Boolean(selected());
  command({ id: "recall-all", title: "Recall all settings of the picture", keys: "A", symbol: "recall", when: here, run: () => recallPicture(selected().id) });
  command({ id: "recall-seed", title: "Recall the seed", keys: "S", symbol: "dice", when: here, run: () => recall(selected().settings, "seed") });
  command({ id: "recall-prompt", title: "Recall the prompt", keys: "P", symbol: "text", when: here, run: () => recall(selected().settings, "prompt") });
  command({ id: "image-next", title: "Next picture", keys: "ArrowRight", symbol: "chevron", when: here, run: () => step(1) });
  command({ id: "image-before", title: "Picture before", keys: "ArrowLeft", symbol: "chevron", when: here, run: () => step(-1) });
  command({ id: "image-delete", title: "Delete the picture", keys: "Delete", symbol: "trash", when: here, run: removeSelected });
}

export function mount(element) {
  const image = h("img", { class: "st-view-image", alt: "", title: "Click to see it large" });
  const bar = progress();
  const frame = h("div", { class: "st-view-frame" }, image);
  const rough = h("img", { class: "st-view-rough", alt: "Rough preview", hidden: true });
  const pending = h("div", { class: "st-view-pending", hidden: true }, icon("generate", 34), rough);
  const before = h("img", { class: "st-view-before", alt: "Picture it started from", hidden: true });
  const cut = h("input", { type: "range", class: "st-view-cut", min: "0", max: "100", value: "50", "aria-label": "Before and after", hidden: true });
  const compare = button("Before / after", { kind: "small", symbol: "eye", title: "Compare with the picture it started from", act: () => { comparing = !comparing; draw(); } });
  const sheet = button("Grid", { kind: "small", symbol: "pictures", title: "All pictures of its grid, side by side", act: () => { const found = job(selected()?.job); if (found) openSheet(found); } });
  let comparing = false;
  cut.addEventListener("input", () => frame.style.setProperty("--cut", `${cut.value}%`));
  const none = empty("generate", "Say what to draw", ["Write a prompt on the left, add a LoRA or two, and press Generate.", "Drop a picture made here or in another web UI to get its settings back."]);
  const trouble = h("div", { class: "st-trouble", role: "alert", hidden: true });
  const stage = h("section", { class: "st-stage", "aria-label": "Picture" }, none, frame, pending, trouble, h("div", { class: "st-stage-tools" }, sheet, compare), bar.node);
  frame.append(before, cut);
  element.replaceChildren(stage);
  onDrop(element.closest(".st-view") ?? stage, (files) => files.length && recallFile(files));
  image.addEventListener("click", () => lightbox(images.items.map((item) => ({ src: item.url, title: `${item.width} × ${item.height} · seed ${item.seed}`, text: item.prompt })), Math.max(0, images.items.findIndex((item) => item.id === images.selected))));
  const draw = () => {
    const item = selected();
    const running = active().find((one) => one.state === "running") ?? active()[0];
    bar.draw(running);
    if (running && running.id !== shownJob) { shownJob = running.id; index = 0; }
    if (live && live.job !== running?.id) live = null;
    const waits = Boolean(running) && follow === running.id && (index === 0 || Boolean(live));
    rough.hidden = !live;
    if (live && rough.getAttribute("src") !== live.src) rough.src = live.src;
    pending.hidden = !waits;
    const size = waits ? [running.settings?.width, running.settings?.height] : item ? [item.width, item.height] : null;
    if (size?.[0]) for (const node of [frame, pending]) { node.style.setProperty("--w", size[0]); node.style.setProperty("--h", size[1]); }
    frame.hidden = waits || !item;
    const start = !waits && item?.settings?.init_image;
    compare.hidden = !start;
    sheet.hidden = waits || !job(item?.job)?.settings?.grid?.length;
    before.hidden = cut.hidden = !start || !comparing;
    compare.setAttribute("aria-pressed", String(comparing));
    if (start && comparing) before.src = `/api/images/inputs/${encodeURIComponent(start)}`;
    none.hidden = waits || Boolean(item) || !images.loaded;
    if (item && image.getAttribute("src") !== item.url) { image.src = item.url; image.alt = item.prompt || "Generated picture"; }
    const lost = !running && state.jobs.find((one) => one.id === follow && one.state === "failed");
    trouble.hidden = !lost;
    if (lost) trouble.replaceChildren(icon("error", 20), h("span", {}, [lost.message, lost.remedy].filter(Boolean).join(" ")));
  };
  on("images", () => {
    const newest = images.items[0];
    if (newest && follow && newest.job === follow && newest.id !== images.selected) select(newest.id);
    else if (newest && !selected()) select(newest.id);
    draw();
  });
  on("image-selected", draw);
  on("jobs", draw);
  on("event", ({ job: id, event }) => {
    if (event.kind === "preview") { live = { job: id, src: `/api/jobs/${api.id(id)}/files/${event.path}` }; draw(); }
    if (event.kind !== "image" || id !== shownJob) return;
    index = event.index + 1;
    live = null;
    draw();
  });
  on("generating", (made) => { follow = made.id; draw(); });
  on("cancel-generate", () => { const running = active().find((one) => one.state === "running") ?? active()[0]; if (running) api.post(`/jobs/${api.id(running.id)}/cancel`).catch(failed("It was not cancelled")); });
  declare();
  draw();
}
