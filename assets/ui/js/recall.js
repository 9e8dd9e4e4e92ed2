// Settings of a picture back into the form: all of them, the seed, or the prompt; from the gallery or a dropped PNG.

import * as api from "./api.js";
import { call } from "./form.js";
import { failed, toast } from "./toasts.js";
import { setSource, takeFile } from "./source.js";
import { setStack } from "./stack.js";
import { show } from "./shell.js";

export async function recall(settings, part = "all", { troubles = [], changed = [] } = {}) {
  try {
    await call("generate", "recall", { settings, part });
    if (part === "all") {
      setStack(settings.loras ?? [], changed);
      setSource(settings.init_image, settings.mask);
    }
    if (troubles.length) return toast("The settings are back, but not all is as it was", { tone: "warn", detail: `${troubles.join(". ")}.`, seconds: 20 });
    return toast({ all: "All settings are back", seed: "Seed taken over", prompt: "Prompt taken over" }[part], { tone: "good", seconds: 3 });
  } catch (error) {
    failed("The settings could not be taken over")(error);
  }
}

// A picture of the gallery: what its file says, held against the library of today.
export async function recallPicture(id, part = "all") {
  try {
    const { settings, ...rest } = await api.get(`/images/${api.id(id)}/recall`);
    await recall(settings, part, rest);
  } catch (error) {
    failed("The settings could not be read")(error);
  }
}

export async function recallFile([[name, file]]) {
  try {
    const { settings, ...rest } = await api.upload("/images/recall", [[name, file]]);
    show("generate");
    await recall(settings, "all", rest);
  } catch (error) {
    toast(`Nothing to recall in ${name}`, { tone: "bad", detail: error.message, action: "Start from it", act: () => { show("generate"); takeFile(name, file); } });
  }
}
