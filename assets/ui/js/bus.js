// Words between the parts of the page, and what they all look at.

const target = new EventTarget();

export function on(name, act) {
  const listener = (event) => act(event.detail);
  target.addEventListener(name, listener);
  return () => target.removeEventListener(name, listener);
}

export function say(name, detail) {
  target.dispatchEvent(new CustomEvent(name, { detail }));
}

// A value kept in the browser; a broken or foreign entry counts as absent.
export function remembered(key, fallback) {
  try {
    const text = localStorage.getItem(`studio.${key}`);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

export function remember(key, value) {
  try {
    localStorage.setItem(`studio.${key}`, JSON.stringify(value));
  } catch (error) {
    console.info("not remembered", key, error.name);
  }
}

// Coalesce calls: run once, `wait` ms after the last one.
export function settled(act, wait) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), wait);
  };
}
