// Export of a LoRA: format and number format, then a verified file to download.

import * as api from "./api.js";
import { on } from "./bus.js";
import { dialog } from "./dialogs.js";
import { button, h } from "./dom.js";
import { failed, toast } from "./toasts.js";

const FORMATS = [["kohya", "kohya", "A1111, Forge, ComfyUI, InvokeAI, Civitai"], ["peft", "PEFT", "diffusers and scripts"]];
const DTYPES = [["fp16", "fp16", "what everybody shares"], ["bf16", "bf16", "wide range, half the size"], ["fp32", "fp32", "exact, twice the size"]];

function choice(name, label, options) {
  return h("fieldset", { class: "st-choice" }, h("legend", {}, label), options.map(([value, title, help], i) => h("label", {}, h("input", { type: "radio", name, value, checked: i === 0 }), h("span", {}, h("b", {}, title), h("small", {}, help)))));
}

// The job once it has ended well; rejects with its reason otherwise.
export function finished(id) {
  return new Promise((resolve, reject) => {
    const stop = on("job", ({ job }) => {
      if (job.id !== id) return;
      if (job.state === "finished") { stop(); resolve(job); }
      if (["failed", "cancelled", "interrupted"].includes(job.state)) { stop(); reject(new Error(job.message || "it ended early")); }
    });
    api.get(`/jobs/${api.id(id)}`).then((job) => { if (job.state === "finished") { stop(); resolve(job); } else if (job.state === "failed") { stop(); reject(new Error(job.message)); } }, () => {});
  });
}

export function save(address, name = "") {
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

// source: a library name, a run, or RUN@STEP.
export function exportDialog({ source, name }) {
  const form = h("form", { class: "st-form" }, choice("format", "Key names", FORMATS), choice("dtype", "Numbers", DTYPES), h("p", { class: "st-dim" }, "The file is read back and compared with the LoRA before it is offered."));
  const go = async () => {
    const values = Object.fromEntries(new FormData(form));
    close();
    try {
      const job = await api.post("/jobs/export", { source, name, ...values });
      toast("Export started", { detail: name, seconds: 4 });
      const done = await finished(job.id);
      const address = `/api/jobs/${api.id(done.id)}/export`;
      save(address, `${name}.safetensors`);
      toast(`${name}.safetensors is verified and saved`, { tone: "good", action: "Save again", act: () => save(address, `${name}.safetensors`) });
    } catch (error) {
      failed("The export failed")(error);
    }
  };
  const close = dialog(`Export ${name}`, form, [button("Export and download", { kind: "primary", symbol: "download", act: go })]);
}
