// What held-out pictures tell beyond one number: the loss by noise level over the run, and what the rank probe found.

import { badge, h, shape } from "./dom.js";
import { bytes, count, figure } from "./format.js";

const [WIDTH, HEIGHT] = [600, 96];

// One line a level, least noise boldest, each as a share of what it was at the first look.
export function byLevel() {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "Held-out loss by noise level" });
  const ends = h("p", { class: "st-dim st-levels-ends" });
  const legend = h("span", { class: "st-legend" }, h("span", {}, h("i", { class: "is-least" }), "least noise"), h("span", {}, h("i", { class: "is-most" }), "most noise"));
  const node = h("section", { class: "st-card st-levels" }, h("h3", {}, "Held-out loss by noise level", legend), svg, ends);
  return {
    node,
    set(looks) {
      const told = looks.filter((look) => look.by_level?.length);
      node.hidden = told.length < 2;
      if (node.hidden) return;
      const first = told[0];
      const shares = first.by_level.map((was, level) => told.map((look) => look.by_level[level] / (was || 1)));
      const high = Math.max(1, ...shares.flat());
      const span = told.at(-1).step - first.step || 1;
      const point = (share, i) => `${(((told[i].step - first.step) / span) * WIDTH).toFixed(1)},${(HEIGHT - 4 - (share / high) * (HEIGHT - 8)).toFixed(1)}`;
      const lines = shares.map((values, level) => shape("polyline", { points: values.map(point).join(" "), class: "st-level", style: { "--st-at": String(level / Math.max(1, shares.length - 1)) } }));
      const whole = (HEIGHT - 4 - (1 / high) * (HEIGHT - 8)).toFixed(1);
      svg.replaceChildren(shape("line", { x1: 0, x2: WIDTH, y1: whole, y2: whole, class: "st-level-one" }), ...lines);
      const best = told.findLast((look) => look.best) ?? told.at(-1);
      const third = Math.max(1, Math.floor(shares.length / 3));
      const mean = (from) => shares.slice(from, from + third).reduce((sum, values) => sum + values[told.indexOf(best)], 0) / third;
      const said = [["little noise (detail)", 0], ["middle", third], ["much noise (layout)", shares.length - third]].map(([what, from]) => `${what} ${Math.round(100 * mean(from))} %`);
      ends.textContent = `Step ${best.step}, of what the bare base has: ${said.join(" · ")}`;
    },
  };
}

// The smaller file that a run offers, and what it costs.
export function probeCard() {
  const body = h("p", {});
  const node = h("section", { class: "st-card" }, h("h3", {}, "Rank probe"), body);
  return {
    node,
    set(found) {
      node.hidden = !found;
      if (!found) return;
      const { before, after } = found;
      if (!after) return body.replaceChildren(`No smaller file predicts the ${count(found.held_out, "held-out picture")} as well: the LoRA uses all its ranks.`);
      const sizes = found.bytes_before ? `${bytes(found.bytes_before)} → ${bytes(after.bytes)}` : `${count(before.parameters, "number")} → ${count(after.parameters, "number")}`;
      const words = `mean rank ${figure(before.mean_rank, 3)} → ${figure(after.mean_rank, 3)}, held-out loss ${figure(found.loss)} → ${figure(after.loss)}; the smaller file is in the library too.`;
      return body.replaceChildren(badge(sizes, "good"), ` ${words}`);
    },
  };
}
