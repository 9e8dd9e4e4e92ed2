// Settings of a picture back into the form: all of them, the seed, or the prompt; from the gallery or a dropped PNG.

import * as api from "./api.js";
import { call } from "./form.js";
import { failed, toast } from "./toasts.js";
import { setStack } from "./stack.js";
import { show } from "./shell.js";

export async function recall(settings, part = "all") {
  try {
    await call("generate", "recall", { settings, part });
    if (part === "all") setStack(settings.loras ?? []);
    toast({ all: "All settings are back", seed: "Seed taken over", prompt: "Prompt taken over" }[part], { tone: "good", seconds: 3 });
  } catch (error) {
    failed("The settings could not be taken over")(error);
  }
}

export async function recallFile([[name, file]]) {
  try {
    const settings = await api.upload("/images/recall", [[name, file]]);
    show("generate");
    await recall(settings);
  } catch (error) {
    failed(`Nothing to recall in ${name}`)(error);
  }
}
