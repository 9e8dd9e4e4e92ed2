// The road between this page and the Gradio form of a view: one call at a time goes there as a command, its reply comes back by number.

import { on, remember, remembered, say, settled } from "./bus.js";

const waiting = new Map();
const bridges = new Map();
const opened = new Map();
let number = 0;
let chain = Promise.resolve();

export function mount(element, { name }, { props, trigger, watch }) {
  bridges.set(name, trigger);
  opened.get(name)?.forEach((go) => go());
  watch("value", () => {
    const reply = props.value;
    if (reply?.say) say(reply.say, reply.detail);
    const take = reply && waiting.get(reply.number);
    if (!take) return;
    waiting.delete(reply.number);
    take(reply);
  });
  call(name, "restore", { values: remembered(`form.${name}`, {}) }).then((habits) => say("base-chosen", { form: name, ...habits })).catch((error) => console.info("form not restored", error.message));
}

function once(form, command, payload, patience) {
  return new Promise((resolve, reject) => {
    number += 1;
    const own = String(number);
    const timer = setTimeout(() => {
      waiting.delete(own);
      reject(new Error("the studio does not answer; is it still running in its terminal?"));
    }, patience);
    waiting.set(own, (reply) => {
      clearTimeout(timer);
      if (reply.error) reject(new Error(reply.error));
      else resolve(reply.result);
    });
    bridges.get(form)("command", { number: own, command, payload });
  });
}

// Ask the server's half of a form: it reads the widgets, or fills them. patience: milliseconds for the answer.
export function call(form, command, payload = {}, patience = 15000) {
  const there = bridges.has(form) ? Promise.resolve() : new Promise((resolve) => opened.set(form, [...(opened.get(form) ?? []), resolve]));
  const result = Promise.all([there, chain]).then(() => once(form, command, payload, patience));
  chain = result.then(() => {}, () => {});
  return result;
}

const write = { train: settled((values) => remember("form.train", values), 300), generate: settled((values) => remember("form.generate", values), 300) };

// What the widgets hold, kept in the browser for the next visit.
export function keep(form, names, values) {
  write[form](Object.fromEntries(names.map((name, i) => [name, values[i]])));
  say("form-changed", { form });
}

on("form-reset", ({ form }) => {
  remember(`form.${form}`, {});
  call(form, "reset").then((habits) => say("base-chosen", { form, ...habits })).catch((error) => console.info("form not reset", error.message));
});
