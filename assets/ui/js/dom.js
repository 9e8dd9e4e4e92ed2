// Elements and icons. Every value becomes a text node or an attribute, never markup: names and captions are untrusted.

export const ROOT = new URL("../", import.meta.url).href;

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "tabIndex", "textContent", "draggable", "selected", "spellcheck", "open", "scrollTop"]);

function apply(node, name, value) {
  if (value === undefined || value === null || value === false) {
    if (PROPERTIES.has(name)) node[name] = value ?? "";
    return;
  }
  if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
  else if (name === "data") Object.assign(node.dataset, value);
  else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
  else if (name === "class") node.setAttribute("class", Array.isArray(value) ? value.filter(Boolean).join(" ") : value);
  else if (PROPERTIES.has(name)) node[name] = value;
  else node.setAttribute(name, value === true ? "" : value);
}

export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) apply(node, name, value);
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

// An element of a drawing.
export function shape(tag, attributes = {}) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) apply(node, name, value);
  return node;
}

export function icon(name, size = 18) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of [["width", size], ["height", size], ["class", "st-icon"], ["aria-hidden", "true"]]) svg.setAttribute(key, value);
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `${ROOT}icons.svg#${name}`);
  svg.append(use);
  return svg;
}

// kind: primary, quiet, danger, icon. `reason` disables the button and is what hovering it says.
export function button(label, { kind = "", symbol = "", title = "", reason = "", act, ...rest } = {}) {
  const bare = kind.includes("icon");
  const node = h("button", { type: "button", class: ["st-button", ...kind.split(" ").filter(Boolean).map((k) => `is-${k}`)], title: reason || title || (bare ? label : undefined), "aria-label": bare ? label : undefined, ...rest });
  if (symbol) node.append(icon(symbol, bare ? 17 : 15));
  if (!bare) node.append(h("span", {}, label));
  if (reason) node.setAttribute("aria-disabled", "true");
  node.addEventListener("click", (event) => {
    if (node.getAttribute("aria-disabled") === "true") return event.preventDefault();
    return act?.(event, node);
  });
  return node;
}

export function setReason(node, reason, title = "") {
  if (reason) node.setAttribute("aria-disabled", "true");
  else node.removeAttribute("aria-disabled");
  node.title = reason || title;
}

export function badge(text, tone = "") {
  return h("span", { class: ["st-badge", tone && `is-${tone}`] }, text);
}

export function empty(symbol, title, lines = [], ...actions) {
  return h("div", { class: "st-empty" }, h("div", { class: "st-empty-icon" }, icon(symbol, 26)), h("h3", {}, title), lines.map((line) => h("p", {}, line)), actions.length ? h("div", { class: "st-empty-actions" }, actions) : null);
}

export function picture(src, alt, attributes = {}) {
  return h("img", { src, alt, loading: "lazy", decoding: "async", draggable: "false", ...attributes });
}

// A list whose nodes are kept while their key stays: focus, hover and images survive an update.
export function keyed(parent, items, key, make, update = () => {}) {
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let after = null;
  for (const item of items) {
    const name = String(key(item));
    let node = old.get(name);
    if (node) old.delete(name);
    else {
      node = make(item);
      node.dataset.key = name;
    }
    update(node, item);
    const place = after ? after.nextSibling : parent.firstChild;
    if (node !== place) parent.insertBefore(node, place);
    after = node;
  }
  for (const node of old.values()) node.remove();
}
