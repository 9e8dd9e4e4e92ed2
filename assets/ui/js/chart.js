// The loss of a run on a canvas: raw points faint, smoothed line strong, held-out loss with its interval, crosshair with figures.

import { h } from "./dom.js";
import { on } from "./bus.js";
import { figure, small } from "./format.js";

const PAD = { left: 46, right: 12, top: 12, bottom: 22 };

export function smooth(values, weight) {
  let sum = 0;
  let debias = 0;
  return values.map((value) => {
    sum = sum * weight + value * (1 - weight);
    debias = debias * weight + (1 - weight);
    return sum / debias;
  });
}

function niceSteps(low, high, n) {
  const raw = (high - low) / n || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const marks = [];
  for (let mark = Math.ceil(low / step) * step; mark <= high + 1e-12; mark += step) marks.push(Number(mark.toPrecision(12)));
  return marks;
}

export function chart() {
  const canvas = h("canvas", { role: "img", "aria-label": "Loss over steps: no figures yet" });
  const tip = h("div", { class: "st-chart-tip", hidden: true });
  const node = h("figure", { class: "st-chart" }, canvas, tip);
  let steps = [];
  let losses = [];
  let looks = [];
  let rates = new Map();
  let line = [];
  let total = 0;
  let hover = -1;
  let asked = false;

  function scales() {
    const box = { w: canvas.clientWidth - PAD.left - PAD.right, h: canvas.clientHeight - PAD.top - PAD.bottom };
    const sorted = [...losses].sort((a, b) => a - b);
    const seen = looks.flatMap((look) => [look.loss, look.low ?? look.loss, look.high ?? look.loss]);
    const high = Math.max(sorted[Math.floor(sorted.length * 0.985)] ?? 1, ...line.slice(3), ...seen) * 1.08 || 1;
    const low = Math.min(sorted[0] ?? 0, ...line, ...seen) * 0.92;
    const first = Math.min(steps[0] ?? 0, looks[0]?.step ?? Infinity);
    const last = Math.max(total, steps.at(-1) ?? 1, first + 1);
    return { box, low, high, first, last, x: (s) => PAD.left + ((s - first) / (last - first)) * box.w, y: (v) => PAD.top + box.h - ((Math.min(v, high) - low) / (high - low || 1)) * box.h };
  }

  function draw() {
    asked = false;
    const ratio = devicePixelRatio || 1;
    if (!canvas.clientWidth) return;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(name).trim();
    const s = scales();
    g.font = `10.5px ${colour("--st-font")}`;
    g.fillStyle = colour("--st-text3");
    g.strokeStyle = colour("--st-line");
    g.textAlign = "right";
    g.textBaseline = "middle";
    for (const mark of niceSteps(s.low, s.high, 5)) {
      const y = Math.round(s.y(mark)) + 0.5;
      g.beginPath(); g.moveTo(PAD.left, y); g.lineTo(PAD.left + s.box.w, y); g.stroke();
      if (losses.length) g.fillText(figure(mark, 3), PAD.left - 8, y);
    }
    g.textAlign = "center";
    g.textBaseline = "top";
    for (const mark of niceSteps(s.first, s.last, 6)) if (Number.isInteger(mark)) g.fillText(String(mark), s.x(mark), PAD.top + s.box.h + 7);
    if (!losses.length) return;
    const path = (values) => { g.beginPath(); values.forEach((value, i) => g[i ? "lineTo" : "moveTo"](s.x(steps[i]), s.y(value))); };
    g.lineJoin = "round";
    g.strokeStyle = colour("--st-accent"); g.globalAlpha = 0.24; g.lineWidth = 1; path(losses); g.stroke();
    g.globalAlpha = 1; g.lineWidth = 1.8; path(line); g.stroke();
    g.lineTo(s.x(steps.at(-1)), PAD.top + s.box.h); g.lineTo(s.x(steps[0]), PAD.top + s.box.h); g.closePath();
    const fade = g.createLinearGradient(0, PAD.top, 0, PAD.top + s.box.h);
    fade.addColorStop(0, colour("--st-accent-soft")); fade.addColorStop(1, "transparent");
    g.fillStyle = fade; g.fill();
    if (looks.length) drawLooks(g, s, colour("--st-info"));
    if (hover >= 0) {
      const x = s.x(steps[hover]);
      g.strokeStyle = colour("--st-line3"); g.lineWidth = 1;
      g.beginPath(); g.moveTo(x, PAD.top); g.lineTo(x, PAD.top + s.box.h); g.stroke();
      g.fillStyle = colour("--st-accent");
      g.beginPath(); g.arc(x, s.y(line[hover]), 3.5, 0, 7); g.fill();
    }
  }

  function drawLooks(g, s, tone) {
    const along = (values) => values.forEach(([step, value], i) => g[i ? "lineTo" : "moveTo"](s.x(step), s.y(value)));
    const known = looks.filter((look) => look.low !== null);
    g.fillStyle = g.strokeStyle = tone;
    if (known.length > 1) {
      g.globalAlpha = 0.14;
      g.beginPath();
      along(known.map((look) => [look.step, look.high]));
      [...known].reverse().forEach((look) => g.lineTo(s.x(look.step), s.y(look.low)));
      g.closePath(); g.fill();
      g.globalAlpha = 1;
    }
    g.lineWidth = 1.6; g.beginPath(); along(looks.map((look) => [look.step, look.loss])); g.stroke();
    const best = looks.findLast((look) => look.best);
    for (const look of looks) {
      g.beginPath(); g.arc(s.x(look.step), s.y(look.loss), look === best ? 3.6 : 2.2, 0, 7); g.fill();
    }
    if (best) { g.lineWidth = 1.4; g.beginPath(); g.arc(s.x(best.step), s.y(best.loss), 6.5, 0, 7); g.stroke(); }
  }

  const redraw = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };
  canvas.addEventListener("pointermove", (event) => {
    if (!steps.length) return;
    const s = scales();
    const at = s.first + ((event.offsetX - PAD.left) / s.box.w) * (s.last - s.first);
    hover = steps.reduce((best, step, i) => (Math.abs(step - at) < Math.abs(steps[best] - at) ? i : best), 0);
    tip.hidden = false;
    tip.replaceChildren(h("b", {}, `Step ${steps[hover]}`), h("span", {}, `loss ${figure(losses[hover])}`), h("span", {}, `smoothed ${figure(line[hover])}`), ...told(rates.get(steps[hover])), ...heldOut(steps[hover]));
    tip.style.left = `${Math.min(s.x(steps[hover]) + 12, canvas.clientWidth - 130)}px`;
    redraw();
  });
  canvas.addEventListener("pointerleave", () => { hover = -1; tip.hidden = true; redraw(); });
  new ResizeObserver(redraw).observe(canvas);
  on("theme", () => setTimeout(redraw, 30));

  function told(at) {
    if (!at) return [];
    return [["learning rate", at.rate && small(at.rate)], ["gradient", at.gradient === null ? "" : figure(at.gradient)]].filter(([, text]) => text).map(([what, text]) => h("span", {}, `${what} ${text}`));
  }

  function heldOut(step) {
    const look = looks.findLast((one) => one.step <= step);
    if (!look) return [];
    const between = look.low === null ? "" : ` (${figure(look.low, 3)} to ${figure(look.high, 3)})`;
    return [h("span", {}, `held out ${figure(look.loss)}${between} at step ${look.step}`)];
  }

  return {
    node,
    set(points, of, seen = [], beside = new Map()) {
      looks = seen;
      rates = beside;
      steps = points.map(([step]) => step);
      losses = points.map(([, loss]) => loss);
      line = smooth(losses, losses.length > 40 ? 0.95 : 0.8);
      total = of;
      canvas.setAttribute("aria-label", losses.length ? `Loss over steps: ${figure(line.at(-1))} at step ${steps.at(-1)}, ${figure(line[0])} at the beginning${looks.length ? `; held-out loss ${figure(looks.at(-1).loss)}` : ""}` : "Loss over steps: no figures yet");
      redraw();
    },
    redraw,
  };
}
