// What the pages of the website share: menu, light and dark, table of contents, search. No network, no library.
"use strict";

(() => {
const byId = (id) => document.getElementById(id);
const make = (name, className, ...children) => {
  const element = document.createElement(name);
  element.className = className;
  element.append(...children);
  return element;
};

// On narrow screens the sidebar folds behind a button.
function openMenu(open) {
  document.body.classList.toggle("menu-open", open);
  byId("site-menu").setAttribute("aria-expanded", open);
  if (open) showCurrent();
}
const showCurrent = () => document.querySelector("#site-sidebar [aria-current]")?.scrollIntoView({ block: "center" });
byId("site-menu").addEventListener("click", () => openMenu(!document.body.classList.contains("menu-open")));
byId("site-main").addEventListener("click", () => openMenu(false));
showCurrent();

// Light and dark: the system's choice until the reader makes one, which is then remembered.
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const nameTheme = () => {
  byId("site-theme").textContent = isDark() ? "Light" : "Dark";
  byId("site-theme").title = `Switch to ${isDark() ? "light" : "dark"} colours`;
};
byId("site-theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("theme", theme); } catch { /* remembered on this page only */ }
  nameTheme();
});
system.addEventListener("change", nameTheme);
nameTheme();

// The table of contents stands open where there is room beside the text, and shows where the reader is.
const contents = document.querySelector(".toc");
if (contents) {
  const roomy = matchMedia("(min-width: 80rem)");
  const unfold = () => { contents.open = roomy.matches; };
  roomy.addEventListener("change", unfold);
  unfold();
  const entries = [...contents.querySelectorAll("a")];
  const headings = entries.map((entry) => byId(decodeURIComponent(entry.hash.slice(1))));
  const mark = () => {
    const passed = headings.filter((heading) => heading && heading.getBoundingClientRect().top < 120).length;
    entries.forEach((entry, index) => entry.classList.toggle("here", index === Math.max(passed - 1, 0)));
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
  contents.addEventListener("click", (event) => {
    if (event.target.closest("a") && !roomy.matches) contents.open = false;
  });
}

// Search: the index is a script, because a page opened from a folder may not read other files. It is fetched when it is first needed.
let index;
function loadIndex() {
  index ??= new Promise((resolve) => {
    const script = make("script", "");
    script.src = "search.js";
    script.onload = () => resolve(window.searchIndex);
    document.head.append(script);
  });
  return index;
}

const count = (text, word) => text.split(word).length - 1;
function score(entry, words) {
  const [title, heading, text] = [entry.title, entry.heading, entry.text].map((part) => part.toLowerCase());
  let sum = heading ? 0 : 1;
  for (const word of words) {
    const value = 20 * count(title, word) + 12 * count(heading, word) + Math.min(count(text, word), 6);
    if (!value) return 0;
    sum += value;
  }
  const phrase = words.join(" ");
  return sum + 15 * [title, heading, text].filter((part) => words.length > 1 && part.includes(phrase)).length;
}

function find(entries, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const scored = entries.map((entry) => ({ entry, words, score: score(entry, words) })).filter((hit) => hit.score);
  const taken = {};
  const ranked = scored.sort((one, other) => other.score - one.score);
  const page = (hit) => hit.entry.address.split("#")[0];
  return ranked.filter((hit) => (taken[page(hit)] = (taken[page(hit)] ?? 0) + 1) <= 3).slice(0, 20);
}

function snippet(text, words) {
  const places = (parts) => parts.map((part) => text.toLowerCase().indexOf(part)).filter((place) => place >= 0);
  const [at = text.length] = [...places([words.join(" ")]), ...places(words).sort((one, other) => one - other)];
  const from = at === text.length ? 0 : Math.max(0, text.lastIndexOf(" ", Math.max(0, at - 50)));
  const shown = (from ? "…" : "") + text.slice(from, from + 170) + (from + 170 < text.length ? "…" : "");
  const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pieces = shown.split(new RegExp(`(${escaped.join("|")})`, "i"));
  return make("small", "", ...pieces.map((piece, number) => (number % 2 ? make("mark", "", piece) : piece)));
}

const field = byId("site-search");
const results = byId("site-results");
let chosen = 0;

function choose(number) {
  const links = [...results.querySelectorAll("a")];
  chosen = Math.max(0, Math.min(number, links.length - 1));
  links.forEach((link, place) => link.setAttribute("aria-selected", place === chosen));
  links[chosen]?.scrollIntoView({ block: "nearest" });
  if (links[chosen]) field.setAttribute("aria-activedescendant", links[chosen].id);
  else field.removeAttribute("aria-activedescendant");
}

function closeResults() {
  results.hidden = true;
  field.setAttribute("aria-expanded", false);
  field.removeAttribute("aria-activedescendant");
}

async function search() {
  const hits = find(await loadIndex(), field.value);
  if (!field.value.trim()) return closeResults();
  results.replaceChildren(...hits.map(({ entry, words }, number) => {
    const link = make("a", "", make("b", "", entry.title), entry.heading ? ` › ${entry.heading}` : "", snippet(entry.text, words));
    Object.assign(link, { href: entry.address, id: `site-found-${number}`, role: "option" });
    return link;
  }));
  if (!hits.length) results.append(make("p", "", "Nothing found on any page."));
  results.hidden = false;
  field.setAttribute("aria-expanded", true);
  choose(0);
}

field.addEventListener("focus", loadIndex, { once: true });
field.addEventListener("input", search);
field.addEventListener("keydown", async (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && !results.hidden) {
    event.preventDefault();
    choose(chosen + step);
  } else if (event.key === "Enter") {
    if (results.hidden) await search();
    results.querySelectorAll("a")[chosen]?.click();
  }
});
results.addEventListener("click", (event) => {
  if (!event.target.closest("a")) return;
  closeResults();
  openMenu(false);
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("[role=search]")) closeResults();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    openMenu(true);
    field.focus();
    field.select();
  } else if (event.key === "Escape") {
    if (!results.hidden) {
      closeResults();
      field.focus();
    } else {
      openMenu(false);
      field.blur();
    }
  }
});
})();
