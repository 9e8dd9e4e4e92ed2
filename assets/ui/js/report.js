// What a LoRA file is and who can use it: the verdicts of other programs, the proof of an export, and a look at a file that is dropped.

import * as api from "./api.js";
import { on } from "./bus.js";
import { dialog } from "./dialogs.js";
import { badge, button, h, icon } from "./dom.js";
import { factList } from "./facts.js";
import { bytes, count } from "./format.js";

let chosen = "";
on("base-chosen", ({ form, base }) => { if (form === "generate") chosen = base; });

const WORDS = { yes: "loads", partly: "partly", no: "no", "not applicable": "-" };

function word(row) {
  if (row.loads === "yes" && row.strength === false) return ["wrong strength", "warn"];
  if (!row.listed) return ["hidden", "warn"];
  if (row.loads === "yes" && row.words === false) return ["without its words", "warn"];
  return [WORDS[row.loads], { yes: "good", partly: "warn", no: "bad" }[row.loads] ?? ""];
}

// Programs that show files rather than draw with them have a place here only if something is wrong.
function verdicts(rows) {
  const shown = rows.filter((row) => row.loads !== "not applicable" || row.client === "Civitai");
  return h("ul", { class: "st-verdicts" }, shown.map((row) => {
    const [text, tone] = row.client === "Civitai" ? (row.reasons.length ? ["see below", "warn"] : ["fine", "good"]) : word(row);
    const detail = [row.loads === "partly" ? `${row.matched} of ${row.total} modules` : "", row.label && row.client !== "Civitai" ? `shown as ${row.label}` : ""].filter(Boolean).join(", ");
    return h("li", { data: { client: row.client } }, h("div", {}, h("b", {}, row.client), h("small", {}, detail), h("span", { class: "st-spring" }), badge(text, tone)), row.reasons.map((reason) => h("p", { class: "st-dim" }, reason)));
  }));
}

function proof(report) {
  return report.loaders.map((row) => h("p", { class: "st-proof" }, icon(row.run ? "check" : "info", 14), h("span", {}, row.run ? `Read back by ${row.loader}: ${count(row.modules, "layer")}, largest difference ${row.worst.toExponential(1)}` : `${row.loader}: ${row.note}`)));
}

// For the drawer: told is what /inspect says, report the proof that was kept when the studio wrote the file.
export function reportView(told, report) {
  if (!told.clients?.length) return null;
  return h("section", { class: "st-report", "aria-label": "Other programs" }, h("h4", {}, "Other programs"), verdicts(told.clients), report?.loaders ? proof(report) : null, (told.notes ?? []).map((note) => h("p", { class: "st-dim" }, note)));
}

function fits(told) {
  const sorted = [...(told.fits ?? [])].sort((a, b) => (b.base === chosen) - (a.base === chosen));
  return h("ul", { class: "st-verdicts is-fits" }, sorted.map((row) => h("li", { data: { base: row.base } }, h("div", {}, h("b", {}, row.base), row.base === chosen ? h("small", {}, "chosen in Generate") : null, h("span", { class: "st-spring" }), badge(row.fits ? "fits" : "does not fit", row.fits ? "good" : "bad")), h("p", { class: "st-dim" }, row.reason))));
}

function told(found) {
  const parts = Object.entries(found.parts).map(([part, n]) => `${part.replaceAll("_", " ")} ${n}`).join(", ");
  return h("div", { class: "st-about" },
    h("div", { class: "st-actions" }, badge(found.kind, found.readable ? "accent" : "warn"), found.family_title ? badge(found.family_title) : null, found.algorithm ? badge(found.algorithm) : null),
    h("p", {}, `${/^\d/.test(found.reason) ? "Holds" : "The file"} ${found.reason}.`), found.warnings.map((line) => h("p", { class: "st-dim" }, line)),
    factList([["Size", bytes(found.bytes)], ["Names", found.format], ["Ranks", found.ranks.join(", ")], ["Layers", parts], ["Trigger", found.trigger], ["Trained on", found.base], ["AutoV3", found.hashes?.AutoV3], ["SHA-256", found.sha256?.slice(0, 12)]]),
    h("h4", {}, "Base models"), fits(found), reportView(found));
}

// A file that somebody let go on the library: what it is, whether it fits, and only then whether to keep it.
export async function inspectDialog([name, file], add) {
  const body = h("div", { class: "st-inspect" }, h("p", { class: "st-dim" }, "Looking into the file …"));
  const keep = button("Add to the library", { kind: "primary", symbol: "plus", reason: "wait until it is known what the file is", act: () => { close(); add([[name, file]]); } });
  const close = dialog(name.split("/").pop(), body, [keep], { wide: true });
  try {
    const found = await api.upload("/adapters/inspect", [[name, file]]);
    body.replaceChildren(told(found));
    if (found.readable) { keep.removeAttribute("aria-disabled"); keep.title = ""; }
    else keep.title = `It ${found.reason}`;
  } catch (error) {
    body.replaceChildren(h("p", { class: "st-refused" }, icon("error", 16), h("span", {}, error.message)));
    keep.title = error.message;
  }
}
