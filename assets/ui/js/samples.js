// Preview pictures of a run: one column a step, one row a prompt; a click shows them large, arrows walk.

import { h, icon, keyed, picture } from "./dom.js";
import { lightbox } from "./lightbox.js";

export function filmstrip() {
  const strip = h("div", { class: "st-filmstrip", role: "list", "aria-label": "Samples by step" });
  const none = h("p", { class: "st-dim st-strip-none" }, icon("camera", 16), h("span"));
  const node = h("section", { class: "st-card" }, h("h3", {}, "Samples"), none, strip);
  let all = [];
  const address = (record, sample) => `/api/jobs/${encodeURIComponent(record.id)}/files/${sample.path.split("/").map(encodeURIComponent).join("/")}`;
  const frame = (record, sample) => h("button", { type: "button", class: "st-frame", title: sample.prompt, "aria-label": `Step ${sample.step}: ${sample.prompt}`, on: { click: () => lightbox(all.map((one) => ({ src: address(record, one), title: `Step ${one.step}`, text: one.prompt })), all.indexOf(sample)) } }, picture(address(record, sample), sample.prompt));
  return {
    node,
    draw(record, history) {
      all = [...(history?.samples.values() ?? [])].sort((a, b) => a.step - b.step || (a.path < b.path ? -1 : 1));
      none.hidden = all.length > 0;
      none.lastChild.textContent = record.config?.sample_every ? `Pictures come every ${record.config.sample_every} steps.` : "Press “Sample now” to see what it has learned so far.";
      const steps = [...new Set(all.map((sample) => sample.step))];
      const atEnd = strip.scrollLeft + strip.clientWidth > strip.scrollWidth - 40;
      const before = strip.children.length;
      keyed(strip, steps, (step) => `${record.id}-${step}`, (step) => h("div", { class: "st-film-column", role: "listitem" }, h("small", {}, step ? `Step ${step}` : "Start"), h("div")), (column, step) => {
        keyed(column.lastChild, all.filter((sample) => sample.step === step), (sample) => sample.path, (sample) => frame(record, sample));
      });
      if (atEnd && strip.children.length > before) strip.scrollLeft = strip.scrollWidth;
    },
  };
}
