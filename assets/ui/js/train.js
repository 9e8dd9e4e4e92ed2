// Train, foot of the form: the Start button, and why it cannot be pressed.

import { on, say } from "./bus.js";
import { button, h, setReason } from "./dom.js";
import { call } from "./form.js";
import { chosenSet } from "./sets.js";
import { shown } from "./commands.js";
import { sweepDialog } from "./sweeps.js";
import { toast } from "./toasts.js";

export function mount(element, { settings }) {
  const why = h("small", { class: "st-why", role: "status" });
  let busy = false;
  const start = button("Start training", { kind: "primary large", symbol: "play", title: `Start  ·  ${shown("Mod+Enter")}`, act: () => go() });
  const sweep = button("Sweep", { kind: "large", symbol: "layers", title: "Several runs that differ in the values of one or two settings", act: () => (reason() ? toast(reason(), { tone: "warn" }) : sweepDialog(settings, chosenSet().id)) });
  const reason = () => {
    const set = chosenSet();
    if (!set) return "Choose an image set first";
    if (!set.pictures.length) return "The set is empty: drop pictures into it";
    return busy ? "Starting …" : "";
  };
  const draw = () => {
    const text = reason();
    setReason(start, text, `Start  ·  ${shown("Mod+Enter")}`);
    why.textContent = text;
  };
  async function go() {
    if (reason()) return toast(reason(), { tone: "warn" });
    busy = true;
    draw();
    try {
      const job = await call("train", "start", { images: chosenSet().id });
      say("open-run", job.id);
    } catch (error) {
      toast("The run was not started", { tone: "bad", detail: error.message });
    }
    busy = false;
    return draw();
  }
  element.replaceChildren(h("div", { class: "st-foot" }, why, h("div", { class: "st-foot-row" }, start, sweep)));
  on("set-chosen", draw);
  on("run-train", go);
  on("continue-from", ({ name }) => call("train", "continue_from", { name }).then((base) => toast(`Training goes on from ${name}`, { detail: base ? `Base: ${base}` : "" })).catch((error) => toast("That LoRA cannot be gone on with", { tone: "bad", detail: error.message })));
  draw();
}
