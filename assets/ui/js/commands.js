// Every command of the studio by name: buttons, keys and the palette run the same ones.

const commands = new Map();

// command: {id, title, keys?, group?, symbol?, run, when?}
export function command(entry) {
  commands.set(entry.id, entry);
}

export function all() {
  return [...commands.values()].filter((entry) => !entry.when || entry.when());
}

export function run(id) {
  const entry = commands.get(id);
  if (entry && (!entry.when || entry.when())) entry.run();
}

const MAC = /Mac|iP/.test(navigator.platform);

export function shown(keys) {
  return keys.replace("Mod", MAC ? "⌘" : "Ctrl").replaceAll("+", MAC ? "" : " ");
}

function pressed(event) {
  const parts = [];
  if (event.ctrlKey || event.metaKey) parts.push("Mod");
  if (event.altKey) parts.push("Alt");
  if (event.shiftKey && event.key.length > 1) parts.push("Shift");
  parts.push(event.key.length === 1 ? event.key.toUpperCase() : event.key);
  return parts.join("+");
}

const typing = (node) => node.isContentEditable || (/^(INPUT|TEXTAREA|SELECT)$/.test(node.tagName) && !/^(checkbox|radio|range|button)$/.test(node.type));

export function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.defaultPrevented) return;
    const keys = pressed(event);
    if (typing(event.target) && !keys.startsWith("Mod+")) return;
    if (document.querySelector("dialog[open], .st-popover") && keys !== "Mod+K") return;
    const entry = all().find((candidate) => candidate.keys === keys);
    if (!entry) return;
    event.preventDefault();
    event.stopPropagation();
    entry.run();
  }, true);
}
