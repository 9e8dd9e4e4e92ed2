// Generate: the picture that a drawing starts from, and the mask painted on it. Both are kept by the studio under names of their own.

import * as api from "./api.js";
import { on, remember, remembered, say } from "./bus.js";
import { button, h, icon } from "./dom.js";
import { choose, onDrop } from "./intake.js";
import { paintMask } from "./mask.js";
import { failed, toast } from "./toasts.js";

const url = (name) => `/api/images/inputs/${encodeURIComponent(name)}`;
const valid = (name) => typeof name === "string" && /^[0-9a-f]{32}\.[a-z]+$/.test(name);

let image = valid(remembered("source", {}).image) ? remembered("source", {}).image : "";
let mask = image && valid(remembered("source", {}).mask) ? remembered("source", {}).mask : "";

export const source = () => ({ ...(image ? { init_image: image } : {}), ...(image && mask ? { mask } : {}) });

export function setSource(name, painted = "") {
  image = valid(name) ? name : "";
  mask = image && valid(painted) ? painted : "";
  remember("source", { image, mask });
  if (image) openFold();
  say("source");
}

function openFold() {
  const fold = document.querySelector("[aria-controls=generate-picture]");
  if (fold?.getAttribute("aria-expanded") === "false") fold.click();
}

export async function takeFile(name, file) {
  try {
    const { items } = await api.upload("/images/inputs", [[name, file]]);
    setSource(items[0].name);
  } catch (error) {
    failed(`${name} was not taken`)(error);
  }
}

export async function startFrom(id) {
  try {
    const kept = await api.post(`/images/${api.id(id)}/input`);
    setSource(kept.name);
    toast("Drawing starts from this picture", { tone: "good", detail: "Strength says how far it goes from it.", seconds: 4 });
  } catch (error) {
    failed("The picture was not taken")(error);
  }
}

async function paint() {
  const painted = await paintMask(url(image), mask ? url(mask) : "");
  if (painted === null) return;
  if (painted === "") return setSource(image);
  try {
    const { items } = await api.upload("/images/inputs", [["mask.png", painted]]);
    setSource(image, items[0].name);
  } catch (error) {
    failed("The mask was not kept")(error);
  }
}

export function mount(element) {
  const zone = h("button", { type: "button", class: "st-drop is-source", on: { click: async () => { const [first] = await choose({ accept: "image/*", many: false }); if (first) takeFile(...first); } } }, icon("image", 20), h("span", {}, "Drop a picture here, or click to choose one"));
  const picture = h("img", { class: "st-source-image", alt: "Picture to start from" });
  const shade = h("img", { class: "st-source-mask", alt: "" });
  const words = h("small", { class: "st-dim" });
  const painter = button("Paint mask", { kind: "small", symbol: "edit", title: "Say where the picture is drawn anew", act: paint });
  const unmask = button("No mask", { kind: "small quiet", symbol: "undo", act: () => setSource(image) });
  const drop = button("Take it out", { kind: "small quiet", symbol: "close", title: "Draw from noise again", act: () => setSource("") });
  const card = h("div", { class: "st-source" }, h("div", { class: "st-source-frame" }, picture, shade), h("div", { class: "st-source-side" }, words, painter, unmask, drop));
  const root = h("section", { class: "st-section", "aria-label": "Picture to start from" }, zone, card);
  element.replaceChildren(root);
  onDrop(root, ([first]) => first && takeFile(...first));
  const draw = () => {
    zone.hidden = Boolean(image);
    card.hidden = !image;
    unmask.hidden = shade.hidden = !mask;
    words.textContent = mask ? "White parts are drawn anew" : "The whole picture is drawn over";
    if (image && picture.getAttribute("src") !== url(image)) picture.src = url(image);
    if (mask) { shade.style.maskImage = `url("${url(mask)}")`; shade.src = url(mask); }
    document.body.classList.toggle("has-source", Boolean(image));
  };
  on("source", draw);
  draw();
}
