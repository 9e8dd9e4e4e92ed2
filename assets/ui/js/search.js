// A box that leaves only the settings of a form whose name or explanation holds the words looked for.

import { h } from "./dom.js";

export function mount(element, { form, folds, fold }) {
  const none = h("small", { class: "st-search-none", hidden: true }, "No setting by these words.");
  const box = h("input", { type: "search", class: "st-input is-whole", placeholder: "Find a setting", "aria-label": "Find a setting", autocomplete: "off", spellcheck: "false" });
  const look = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const root = document.getElementById(form);
    let found = 0;
    for (const field of root.querySelectorAll(".st-field")) {
      const text = `${field.id.replace(/[-_]/g, " ")} ${field.textContent}`.toLowerCase();
      const fits = words.every((word) => text.includes(word));
      field.classList.toggle("st-unfound", !fits);
      found += fits;
    }
    for (const title of root.querySelectorAll(`#${folds} > .st-grouptitle`)) {
      const fields = title.nextElementSibling;
      const bare = !fields?.querySelector(".st-field:not(.st-unfound)");
      title.classList.toggle("st-unfound", bare);
      fields?.classList.toggle("st-unfound", bare);
    }
    document.body.classList.toggle(`search-${folds}`, words.length > 0);
    document.getElementById(fold)?.classList.toggle("st-unfound", words.length > 0);
    none.hidden = found > 0;
  };
  box.addEventListener("input", look);
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !box.value) return;
    event.stopPropagation();
    box.value = "";
    look();
  });
  element.replaceChildren(box, none);
}
