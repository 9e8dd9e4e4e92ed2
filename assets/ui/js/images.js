// The generated pictures that the page knows, newest first, and which one is looked at.

import * as api from "./api.js";
import { on, remember, remembered, say, settled } from "./bus.js";
import { failed, toast } from "./toasts.js";

const PAGE = 60;
export const images = { items: [], more: true, selected: remembered("image", ""), loaded: false };

export const selected = () => images.items.find((item) => item.id === images.selected);

export async function refresh() {
  try {
    const fresh = (await api.get(`/images?limit=${PAGE}`)).items;
    const oldest = fresh.at(-1);
    const cut = oldest ? images.items.findIndex((item) => item.id === oldest.id) : -1;
    images.items = cut < 0 ? fresh : [...fresh, ...images.items.slice(cut + 1)];
    images.more = cut < 0 ? fresh.length === PAGE : images.more;
    images.loaded = true;
    say("images");
  } catch (error) {
    failed("Could not read the pictures")(error);
  }
}

let busy = false;
export async function loadMore() {
  if (busy || !images.more || !images.items.length) return;
  busy = true;
  try {
    const older = (await api.get(`/images?limit=${PAGE}&before=${api.id(images.items.at(-1).id)}`)).items;
    images.items = [...images.items, ...older];
    images.more = older.length === PAGE;
    say("images");
  } catch (error) {
    failed("Could not read older pictures")(error);
  }
  busy = false;
}

export function select(id) {
  images.selected = id;
  remember("image", id);
  say("image-selected", selected());
}

export function step(by) {
  const at = images.items.findIndex((item) => item.id === images.selected);
  const next = images.items[Math.max(0, Math.min(images.items.length - 1, at + by))];
  if (next) select(next.id);
}

export async function removeSelected() {
  const item = selected();
  if (!item) return;
  try {
    const { token } = await api.del(`/images/${api.id(item.id)}`);
    step(images.items.indexOf(item) === images.items.length - 1 ? -1 : 1);
    images.items = images.items.filter((one) => one.id !== item.id);
    say("images");
    toast("Picture deleted", { action: "Undo", seconds: 10, act: () => api.post("/images/restore", { token }).then(refresh).then(() => select(item.id)).catch(failed("Could not bring it back")) });
  } catch (error) {
    failed("The picture was not deleted")(error);
  }
}

const soon = settled(refresh, 80);
soon(); // this part may be there only after the stream has said its first word
on("resync", soon);
on("changed", ({ what }) => what === "images" && soon());
on("event", ({ event }) => event.kind === "image" && soon());
on("job", ({ job }) => job.kind === "generate" && job.state === "finished" && soon());
