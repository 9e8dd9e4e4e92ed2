// Files coming in: by drop, by chooser; folders are walked; big lots go in several requests.

import * as api from "./api.js";
import { h } from "./dom.js";

const LOT_FILES = 24;
const LOT_BYTES = 96e6;

async function walk(entry, path, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push([path + file.name, file]);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return;
    for (const child of batch) await walk(child, `${path}${entry.name}/`, found);
  }
}

export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files].map((file) => [file.name, file]);
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return found.filter(([name]) => !name.split("/").pop().startsWith("."));
}

export function choose({ accept = "", many = true } = {}) {
  return new Promise((resolve) => {
    const input = h("input", { type: "file", accept, multiple: many });
    input.addEventListener("change", () => resolve([...input.files].map((file) => [file.name, file])));
    input.click();
  });
}

export function onDrop(node, take) {
  let depth = 0;
  const mark = (on) => node.classList.toggle("is-over", on);
  const files = (event) => event.dataTransfer?.types.includes("Files");
  node.addEventListener("dragenter", (event) => { if (files(event)) { event.preventDefault(); depth += 1; mark(true); } });
  node.addEventListener("dragover", (event) => { if (files(event)) { event.preventDefault(); event.dataTransfer.dropEffect = "copy"; } });
  node.addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); if (!depth) mark(false); });
  node.addEventListener("drop", async (event) => {
    if (!files(event)) return;
    event.preventDefault();
    event.stopPropagation();
    depth = 0;
    mark(false);
    take(await dropped(event.dataTransfer));
  });
}

// A file let go beside a drop zone must not navigate the page away.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());

function lots(files) {
  const made = [[]];
  let size = 0;
  for (const pair of files) {
    const last = made.at(-1);
    if (last.length && (last.length >= LOT_FILES || size + pair[1].size > LOT_BYTES)) { made.push([]); size = 0; }
    made.at(-1).push(pair);
    size += pair[1].size;
  }
  return made;
}

// Sends files in lots; a caption and its picture stay beside each other because names are sorted.
export async function send(path, files, progress) {
  const sorted = [...files].sort(([a], [b]) => a.localeCompare(b));
  const total = sorted.reduce((sum, [, file]) => sum + file.size, 0) || 1;
  const report = { accepted: 0, rejected: [], skipped: 0 };
  let sent = 0;
  for (const lot of lots(sorted)) {
    const size = lot.reduce((sum, [, file]) => sum + file.size, 0);
    const reply = await api.upload(path, lot, (share) => progress((sent + share * size) / total));
    sent += size;
    report.accepted += reply.accepted;
    report.skipped += reply.skipped;
    report.rejected.push(...reply.rejected);
  }
  return report;
}
