// The one open connection of a tab: numbered messages from the server, gone on with after a break, begun anew after a restart.

import { say } from "./bus.js";

let last = 0;
let boot = "";
const KEPT = "studio.boot"; // of this tab: the page may be loaded anew while the studio restarts, and is to say so then too
const SEEN = 3000; // milliseconds until who looks has read it; a page that is loaded anew before that says it again
let wait = 500;
let lost = false;
let socket = null;

function take(message) {
  if (message.kind === "hello") {
    const before = boot || sessionStorage.getItem(KEPT);
    if (before && before !== message.boot) {
      say("restarted", message);
      setTimeout(() => sessionStorage.setItem(KEPT, boot), SEEN);
    } else sessionStorage.setItem(KEPT, message.boot);
    boot = message.boot;
    last = message.seq;
    if (lost) say("connection", { open: true });
    lost = false;
    say("status", message.status);
    say("resync", {});
    return;
  }
  last = message.seq;
  say(message.kind, message);
}

function open() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/api/stream?after=${last}&boot=${encodeURIComponent(boot)}`);
  socket.onmessage = (event) => {
    wait = 500;
    take(JSON.parse(event.data));
  };
  socket.onclose = () => {
    if (!lost) say("connection", { open: false });
    lost = true;
    setTimeout(open, wait);
    wait = Math.min(wait * 1.6, 5000);
  };
}

export function connect() {
  if (!socket) open();
}
