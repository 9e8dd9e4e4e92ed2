// The road between this page and the Gradio form of a view: one call at a time goes there as a command, with what the
// widgets hold; its reply comes back by number.

import { on, remember, remembered, say, settled } from "./bus.js";

const waiting = new Map();
const bridges = new Map();
const opened = new Map();
const gathering = { train: [], generate: [] }; // who waits for what the widgets of a form hold
let number = 0;
let chain = Promise.resolve();

// What a person wrote into which field, and when: a reply that was on its way meanwhile fills the others. Lists have a role: what is
// written there only filters them.
const written = new Map();
const SETTLING = 30; // milliseconds in which Gradio has put a reply's values into the page
document.addEventListener("input", ({ target }) => {
  const field = target.closest?.(".st-field");
  if (field && !target.role) written.set(field.id, { target, at: performance.now(), value: valueOf(target) });
}, true);

const valueOf = (input) => (input.type === "checkbox" ? input.checked : input.value);

const since = (form, moment) => [...written].filter(([id, { at }]) => at > moment && id.startsWith(`${form}-`)).map(([, one]) => one);

function putBack({ target, value }) {
  if (!target.isConnected || valueOf(target) === value) return;
  if (target.type === "checkbox") target.click();
  else {
    target.value = value;
    target.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

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
  call(name, "restore", { values: remembered(`form.${name}`, {}) }, 15000, 0).then((habits) => say("base-chosen", { form: name, ...habits })).catch((error) => console.info("form not restored", error.message));
}

function gather(form) {
  return new Promise((resolve) => {
    gathering[form].push(resolve);
    bridges.get(form)("gather", {});
  });
}

// What the widgets hold, for a command.
export function gathered(form, names, values) {
  gathering[form].shift()?.(Object.fromEntries(names.map((name, i) => [name, values[i]])));
}

function once(form, command, payload, patience, begun) {
  return new Promise((resolve, reject) => {
    number += 1;
    const own = String(number);
    const timer = setTimeout(() => {
      waiting.delete(own);
      gathering[form].length = 0; // should the page answer after all, this command is not sent any more
      reject(new Error("the studio does not answer; is it still running in its terminal?"));
    }, patience);
    waiting.set(own, (reply) => {
      clearTimeout(timer);
      const end = () => (reply.error ? reject(new Error(reply.error)) : resolve(reply.result));
      if (!since(form, begun).length) return end();
      setTimeout(() => { since(form, begun).forEach(putBack); end(); }, SETTLING);
    });
    gather(form).then((settings) => bridges.get(form)("command", { number: own, command, payload, settings }));
  });
}

// Ask the server's half of a form: it reads the widgets, or fills them. patience: milliseconds for the answer. What a person wrote after
// the moment `begun` stays as written.
export function call(form, command, payload = {}, patience = 15000, begun = performance.now()) {
  const there = bridges.has(form) ? Promise.resolve() : new Promise((resolve) => opened.set(form, [...(opened.get(form) ?? []), resolve]));
  const result = Promise.all([there, chain]).then(() => once(form, command, payload, patience, begun));
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
