// Generate: where and when a row of the stack is strong: text encoders, block groups of the denoiser, a drawn curve over the steps.

import { button, h, keyed } from "./dom.js";

const LOW = -10;
const HIGH = 10; // of every strength, as the settings have it
const SLIDER = 2; // the sliders' end; the number beside one goes further
const SHAPES = [["Level", []], ["Fade in", [[0, 0], [1, 1]]], ["Fade out", [[0, 1], [1, 0]]], ["Early", [[0, 1], [0.45, 1], [0.55, 0], [1, 0]]], ["Late", [[0, 0], [0.45, 0], [0.55, 1], [1, 1]]]];
const NAMES = { input: "Input blocks", middle: "Middle block", output: "Output blocks", double: "Double blocks", single: "Single blocks" };
const BLOCK = /^[a-z]+(\.\d+(-\d+)?)?$/;
const STEP = 0.02; // of the arrow keys

const round = (value) => Math.round(value * 100) / 100;
const bounded = (value, low, high) => Math.max(low, Math.min(high, value));

// Whether a row says more than one number.
export const isPlain = (more) => (more?.text_weight ?? null) === null && !Object.keys(more?.blocks ?? {}).length && !more?.schedule?.length;

function nameOf(block) {
  const [group, numbers] = block.split(".");
  return `${NAMES[group] ?? group}${numbers ? ` ${numbers.replace("-", " to ")}` : ""}`;
}

// A slider and its number. set(value) writes without saying anything.
function slider(label, act) {
  const range = h("input", { type: "range", class: "st-range", min: "0", max: String(SLIDER), step: "0.05", "aria-label": label });
  const number = h("input", { type: "number", class: "st-number", min: String(LOW), max: String(HIGH), step: "0.05", "aria-label": `${label} as a number` });
  const set = (value) => {
    range.value = String(value);
    range.style.setProperty("--share", `${bounded((100 * value) / SLIDER, 0, 100)}%`);
    if (document.activeElement !== number) number.value = String(value);
  };
  const take = (value) => { const held = bounded(Number.isFinite(value) ? round(value) : 1, LOW, HIGH); set(held); act(held); };
  range.addEventListener("input", () => take(Number(range.value)));
  range.addEventListener("dblclick", () => take(1));
  number.addEventListener("input", () => number.value !== "" && take(Number(number.value)));
  number.addEventListener("blur", () => { number.value = range.value === number.value ? number.value : String(round(Number(number.value || 1))); });
  return { nodes: [range, number], set };
}

const SVG = "http://www.w3.org/2000/svg";
const svg = (tag, attributes) => { const node = document.createElementNS(SVG, tag); for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value); return node; };
const WIDE = 300;
const TALL = 92;
const EDGE = 9; // so that points at the border are whole

// The curve: points are dragged, or moved with the arrow keys; a click on the field makes one, Delete takes it out.
function curve(name, act) {
  let points = [];
  let top = 1.5;
  const field = svg("svg", { class: "st-curve", viewBox: `0 0 ${WIDE} ${TALL}`, role: "group", "aria-label": `Strength of ${name} over the steps` });
  const grid = svg("g", { class: "st-curve-grid" });
  const line = svg("polyline", { class: "st-curve-line" });
  const area = svg("polygon", { class: "st-curve-area" });
  const handles = svg("g", {});
  field.append(grid, area, line, handles);
  const bottom = () => Math.min(0, ...points.map(([, factor]) => factor));
  const x = (position) => EDGE + position * (WIDE - 2 * EDGE);
  const y = (factor) => TALL - EDGE - ((factor - bottom()) / (top - bottom())) * (TALL - 2 * EDGE);
  const at = (event) => {
    const box = field.getBoundingClientRect();
    const low = bottom();
    return [bounded((((event.clientX - box.left) / box.width) * WIDE - EDGE) / (WIDE - 2 * EDGE), 0, 1), low + bounded((TALL - EDGE - ((event.clientY - box.top) / box.height) * TALL) / (TALL - 2 * EDGE), 0, 1) * (top - low)];
  };
  const say = () => act(points.map(([position, factor]) => [position, factor]));

  function place(i, position, factor) {
    const low = i ? round(points[i - 1][0] + 0.01) : 0;
    const high = i < points.length - 1 ? round(points[i + 1][0] - 0.01) : 1;
    points[i] = [round(bounded(position, low, Math.max(low, high))), round(bounded(factor, LOW, HIGH))];
    draw();
    say();
  }
  function take(i) {
    points = points.toSpliced(i, 1);
    draw();
    say();
    (handles.children[Math.min(i, points.length - 1)] ?? field.closest("section")?.querySelector("button"))?.focus();
  }
  function handle(i) {
    const node = svg("circle", { class: "st-curve-point", r: 5, tabindex: 0, role: "slider", "aria-orientation": "vertical" });
    node.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      event.stopPropagation();
      node.focus();
      node.setPointerCapture(event.pointerId);
    });
    node.addEventListener("pointermove", (event) => node.hasPointerCapture(event.pointerId) && place(i, ...at(event)));
    node.addEventListener("dblclick", (event) => { event.stopPropagation(); take(i); });
    node.addEventListener("keydown", (event) => {
      const by = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
      if (event.altKey || event.ctrlKey || event.metaKey || (!by && !["Delete", "Backspace"].includes(event.key))) return;
      event.preventDefault();
      event.stopPropagation();
      if (!by) return take(i);
      const step = STEP * (event.shiftKey ? 5 : 1);
      return place(i, points[i][0] + by[0] * step, points[i][1] + by[1] * step);
    });
    return node;
  }
  function draw() {
    top = Math.max(1.5, ...points.map(([, factor]) => factor));
    const shown = points.length ? [[0, points[0][1]], ...points, [1, points.at(-1)[1]]] : [[0, 1], [1, 1]];
    const text = shown.map(([position, factor]) => `${x(position)},${y(factor)}`).join(" ");
    line.setAttribute("points", text);
    area.setAttribute("points", `${x(0)},${y(bottom())} ${text} ${x(1)},${y(bottom())}`);
    field.classList.toggle("is-level", !points.length);
    grid.replaceChildren(...[0, 0.5, 1].map((factor) => svg("line", { x1: x(0), x2: x(1), y1: y(factor), y2: y(factor) })), ...[0.25, 0.5, 0.75].map((position) => svg("line", { x1: x(position), x2: x(position), y1: EDGE, y2: TALL - EDGE })));
    while (handles.children.length > points.length) handles.lastChild.remove();
    while (handles.children.length < points.length) handles.append(handle(handles.children.length));
    points.forEach(([position, factor], i) => {
      const node = handles.children[i];
      for (const [key, value] of [["cx", x(position)], ["cy", y(factor)], ["aria-label", `Point ${i + 1} of ${points.length}, at ${Math.round(position * 100)} % of the steps`], ["aria-valuenow", factor], ["aria-valuemin", LOW], ["aria-valuemax", HIGH], ["aria-valuetext", `times ${factor}`]]) node.setAttribute(key, value);
    });
  }
  function add(position, factor) {
    if (points.length >= 64 || points.some(([other]) => Math.abs(other - position) < 0.01)) return;
    points = [...points, [round(position), round(factor)]].sort((a, b) => a[0] - b[0]);
    draw();
    say();
    handles.children[points.findIndex(([other]) => other === round(position))]?.focus();
  }
  field.addEventListener("pointerdown", (event) => { event.preventDefault(); add(...at(event)); });
  draw();
  return {
    node: field,
    set(next) { if (JSON.stringify(next) !== JSON.stringify(points)) { points = next.map(([position, factor]) => [position, factor]); draw(); } },
    // Without a mouse: a point in the widest gap.
    widest() {
      const known = [0, ...points.map(([position]) => position), 1];
      const gaps = points.length ? known.slice(1).map((to, i) => [to - known[i], (to + known[i]) / 2]) : [[1, 0.5]];
      const [, middle] = gaps.reduce((most, gap) => (gap[0] > most[0] ? gap : most));
      const before = points.findLast(([position]) => position <= middle) ?? points[0] ?? [0, 1];
      add(middle, before[1]);
    },
  };
}

// The editor of one row. `more` is what the row says beyond its weight; change(more) hears every move.
export function editor(name, change) {
  let more = {};
  let groups = [];
  const say = (next) => { more = Object.fromEntries(Object.entries({ ...more, ...next }).filter(([, value]) => value !== null)); draw(); change(more); };
  const text = slider(`Text encoders of ${name}`, (value) => say({ text_weight: value }));
  const own = h("input", { type: "checkbox", class: "st-switch", role: "switch", "aria-label": `Own strength on the text encoders for ${name}` });
  let weight = 1;
  own.addEventListener("change", () => say({ text_weight: own.checked ? weight : null }));
  const textRow = h("div", { class: "st-strength" }, h("span", { title: "Strength on the text encoders; off: the same as on the denoiser" }, "Text encoders"), text.nodes, own);
  const list = h("ul", { class: "st-strengths" });
  const block = h("input", { class: "st-input is-small", placeholder: "output.1 or single.20-37", "aria-label": "Name of a block", maxlength: "40" });
  const addBlock = () => { const given = block.value.trim(); if (BLOCK.test(given) && groups.includes(given.split(".")[0])) { block.value = ""; say({ blocks: { ...(more.blocks ?? {}), [given]: 1 } }); } else block.setAttribute("aria-invalid", "true"); };
  block.addEventListener("input", () => block.removeAttribute("aria-invalid"));
  block.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); addBlock(); } });
  const drawn = curve(name, (schedule) => say({ schedule }));
  const shapes = h("div", { class: "st-chips" }, SHAPES.map(([label, points]) => h("button", { type: "button", class: "st-chip is-shape", on: { click: () => say({ schedule: points }) } }, label)), button("Add a point to the curve", { kind: "icon quiet small", symbol: "plus", act: () => drawn.widest() }));
  const node = h("section", { class: "st-strength-editor", "aria-label": `Strengths of ${name}` }, textRow, h("h5", {}, "Blocks of the denoiser"), list, h("div", { class: "st-strength is-add" }, block, button("Add", { kind: "small", act: addBlock })), h("h5", {}, "Over the steps", h("small", {}, "first step to last; times the weight")), drawn.node, shapes);

  function makeBlock(item) {
    const one = slider(`${nameOf(item)} of ${name}`, (value) => say({ blocks: value === 1 && groups.includes(item) ? Object.fromEntries(Object.entries(more.blocks ?? {}).filter(([key]) => key !== item)) : { ...(more.blocks ?? {}), [item]: value } }));
    const gone = groups.includes(item) ? null : button(`Leave out ${nameOf(item)}`, { kind: "icon quiet small", symbol: "close", act: () => say({ blocks: Object.fromEntries(Object.entries(more.blocks ?? {}).filter(([key]) => key !== item)) }) });
    const row = h("li", { class: "st-strength" }, h("span", { title: item }, nameOf(item)), one.nodes, gone);
    row.set = one.set;
    return row;
  }
  function draw() {
    const has = (more.text_weight ?? null) !== null;
    own.checked = has;
    textRow.classList.toggle("is-same", !has);
    text.nodes.forEach((input) => { input.disabled = !has; });
    text.set(has ? more.text_weight : weight);
    const blocks = more.blocks ?? {};
    keyed(list, [...groups, ...Object.keys(blocks).filter((item) => !groups.includes(item))], (item) => item, makeBlock, (row, item) => row.set(blocks[item] ?? 1));
    drawn.set(more.schedule ?? []);
  }
  return { node, set(next, strength, base) { more = next ?? {}; weight = strength; groups = base?.blocks ?? []; draw(); } };
}
