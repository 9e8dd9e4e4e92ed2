// Pairs for preference training: one picture is marked, another one is worse, and both go into an image set.

import * as api from "./api.js";
import { say } from "./bus.js";
import { button } from "./dom.js";
import { failed, toast } from "./toasts.js";

let marked = null;

function mark(item, redraw) {
  marked = item;
  redraw();
  if (item) toast("Marked as the better one", { detail: "Choose the picture that is worse, of the same size, and press Worse than the marked one." });
}

async function keep(item, redraw) {
  const better = marked;
  mark(null, redraw);
  try {
    const { set, pairs } = await api.post(`/images/${api.id(better.id)}/better`, { worse: item.id });
    say("changed", { what: "sets" });
    toast("Pair kept", { tone: "good", detail: `${pairs} in the set ${set.name}. Train on it with preference beta.` });
  } catch (error) {
    failed("The pair was not kept")(error);
  }
}

// The buttons of a picture: mark it, or finish the pair with it.
export function pairing(item, redraw) {
  if (!marked) return [button("The better of two", { symbol: "check", kind: "small", title: "For preference training: this one is better than another", act: () => mark(item, redraw) })];
  const forget = button("Forget the mark", { kind: "small quiet", act: () => mark(null, redraw) });
  if (marked.id === item.id) return [forget];
  return [button("Worse than the marked one", { symbol: "check", kind: "small primary", act: () => keep(item, redraw) }), forget];
}
