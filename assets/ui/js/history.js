// What a run has said, built from its history and kept up by the stream. Applying the same event twice changes nothing.

import * as api from "./api.js";

const MOST_POINTS = 4000;

export class History {
  constructor(id) {
    this.id = id;
    this.points = new Map();
    this.rates = new Map();
    this.samples = new Map();
    this.checkpoints = new Map();
    this.looks = new Map();
    this.notes = new Map();
    this.facts = {};
    this.exported = null;
    this.exact = new Map();
  }

  async load() {
    const told = await api.get(`/jobs/${api.id(this.id)}/history`);
    this.points = new Map([...told.points, ...[...this.points].filter(([step]) => step > (told.points.at(-1)?.[0] ?? -1))]);
    this.rates = new Map([...told.points.map(([step, , rate, gradient]) => [step, { rate, gradient }]), ...this.rates]);
    told.events.forEach((event) => this.take(event));
    return this;
  }

  take(event) {
    if (event.kind === "step") {
      if (event.loss !== null) {
        this.points.set(event.step, event.loss);
        this.rates.set(event.step, { rate: event.learning_rate, gradient: event.gradient_norm });
      }
      if (this.points.size > MOST_POINTS) this.thin();
      this.latest = event;
    } else if (event.kind === "sample") this.samples.set(event.path, event);
    else if (event.kind === "validation") this.looks.set(event.step, event);
    else if (event.kind === "checkpoint") this.checkpoints.set(event.step, event);
    else if (event.kind === "started") this.facts = event.facts;
    else if (event.kind === "exported") this.exported = event;
    const text = note(event);
    if (text) this.notes.set(`${event.time} ${text}`, { time: event.time, text, tone: { warned: "warn", failed: "bad", finished: "good" }[event.kind] || "" });
  }

  thin() {
    const all = [...this.points];
    this.points = new Map(all.filter((_, i) => i % 2 === 0 || i === all.length - 1));
    this.rates = new Map([...this.rates].filter(([step]) => this.points.has(step)));
  }
}

function note(event) {
  switch (event.kind) {
    case "loading": return event.done && event.total && event.done < event.total ? "" : event.phase;
    case "warned": return event.message;
    case "started": return "training starts";
    case "checkpoint": return `checkpoint at step ${event.step}`;
    case "exported": return "LoRA file written and verified";
    case "finished": return "finished";
    case "cancelled": return `cancelled at step ${event.step}. ${event.kept}`;
    case "failed": return [event.message, event.remedy, event.kept].filter(Boolean).join(" ");
    default: return "";
  }
}
