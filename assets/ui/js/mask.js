// Painting a mask: a brush on a canvas over the picture. What is painted is drawn anew.

import { dialog } from "./dialogs.js";
import { button, h } from "./dom.js";

const MOST = 1536; // pixels of the longer side: a mask needs no more
const STEPS = 30; // strokes that can be undone

async function loaded(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  return image;
}

// Lines from point to point as wide as the brush, so that a fast stroke has no gaps.
function stroke(context, from, to, size, erase) {
  context.globalCompositeOperation = erase ? "destination-out" : "source-over";
  context.strokeStyle = "#fff";
  context.lineWidth = size;
  context.lineCap = "round";
  context.lineJoin = "round";
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x + 0.01, to.y);
  context.stroke();
}

// A mask file as what is painted: its white, with black let through.
function asPaint(context, image) {
  const { width, height } = context.canvas;
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data[i + 3] = pixels.data[i];
    pixels.data[i] = pixels.data[i + 1] = pixels.data[i + 2] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

function asFile(canvas) {
  const flat = h("canvas", { width: canvas.width, height: canvas.height });
  const context = flat.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, flat.width, flat.height);
  context.drawImage(canvas, 0, 0);
  return new Promise((resolve) => flat.toBlob(resolve, "image/png"));
}

const isEmpty = (context) => !context.getImageData(0, 0, context.canvas.width, context.canvas.height).data.some((value, i) => i % 4 === 3 && value > 8);

// The painted mask as a PNG file; "" if nothing is painted, null if it was left as it was.
export async function paintMask(src, before) {
  const picture = await loaded(src);
  const scale = Math.min(1, MOST / Math.max(picture.naturalWidth, picture.naturalHeight));
  const canvas = h("canvas", { class: "st-mask-canvas", width: Math.round(picture.naturalWidth * scale), height: Math.round(picture.naturalHeight * scale), role: "img", "aria-label": "Paint where the picture is drawn anew" });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (before) asPaint(context, await loaded(before));
  const past = [];
  const note = () => { past.push(context.getImageData(0, 0, canvas.width, canvas.height)); if (past.length > STEPS) past.shift(); };
  const size = h("input", { type: "range", class: "st-range", min: "1", max: "40", value: "10", "aria-label": "Brush size" });
  const eraser = h("input", { type: "checkbox", class: "st-switch", role: "switch", "aria-label": "Erase" });
  const share = () => size.style.setProperty("--share", `${((size.value - 1) / 39) * 100}%`);
  size.addEventListener("input", share);
  share();
  const width = () => (Number(size.value) / 100) * Math.max(canvas.width, canvas.height);
  const ring = h("i", { class: "st-mask-ring", hidden: true });
  const at = (event) => { const box = canvas.getBoundingClientRect(); return { x: ((event.clientX - box.left) / box.width) * canvas.width, y: ((event.clientY - box.top) / box.height) * canvas.height }; };
  let last = null;
  canvas.addEventListener("pointerdown", (event) => { note(); canvas.setPointerCapture(event.pointerId); last = at(event); stroke(context, last, last, width(), eraser.checked || event.button === 2); });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const side = (width() / canvas.width) * box.width;
    ring.hidden = false;
    ring.style.cssText = `width:${side}px;height:${side}px;left:${event.clientX - box.left - side / 2}px;top:${event.clientY - box.top - side / 2}px`;
    if (!last) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) { const to = at(one); stroke(context, last, to, width(), eraser.checked || (event.buttons & 2) !== 0); last = to; }
  });
  canvas.addEventListener("pointerup", () => { last = null; });
  canvas.addEventListener("pointerleave", () => { ring.hidden = true; });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  const back = () => { const state = past.pop(); if (state) context.putImageData(state, 0, 0); };
  const invert = () => { note(); const pixels = context.getImageData(0, 0, canvas.width, canvas.height); for (let i = 0; i < pixels.data.length; i += 4) { pixels.data[i] = pixels.data[i + 1] = pixels.data[i + 2] = 255; pixels.data[i + 3] = 255 - pixels.data[i + 3]; } context.putImageData(pixels, 0, 0); };
  return new Promise((resolve) => {
    let answer = null;
    const done = async () => { answer = isEmpty(context) ? "" : await asFile(canvas); close(); };
    const tools = h("div", { class: "st-mask-tools" }, h("label", {}, "Brush", size), h("label", {}, eraser, "Erase"), h("span", { class: "st-spring" }), button("Undo", { kind: "small quiet", symbol: "undo", title: "Ctrl Z", act: back }), button("Invert", { kind: "small quiet", symbol: "moon", act: invert }), button("Clear", { kind: "small quiet", symbol: "trash", act: () => { note(); context.clearRect(0, 0, canvas.width, canvas.height); } }));
    const board = h("div", { class: "st-mask-board", style: { "--w": canvas.width, "--h": canvas.height } }, h("img", { src, alt: "" }), canvas, ring);
    const body = h("div", { class: "st-mask" }, tools, board);
    const close = dialog("Paint the mask", body, [button("Use the mask", { kind: "primary", act: done })], { wide: true });
    const node = body.closest("dialog");
    node.classList.add("is-mask");
    node.addEventListener("keydown", (event) => { if ((event.ctrlKey || event.metaKey) && event.key === "z") { event.preventDefault(); back(); } });
    node.addEventListener("close", () => resolve(answer));
  });
}
