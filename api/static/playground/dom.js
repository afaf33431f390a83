/** Small pieces of the page.  Text is only ever set as text: nothing here makes HTML of it. */

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an element.  properties: its properties; `aria-…` and `data-…`, `for` and `role` become attributes; `on…` listeners. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (/^(aria-|data-|for$|role$|class$)/.test(key)) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Return one of the page's icons. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  drawing.append(use);
  return drawing;
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const inPixels = (area) => `${grouped.format(area)} px`;

export const asScore = (score) => score.toFixed(3);

export function inSeconds(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  return `${Math.round(seconds / 60)} min`;
}

export function agoOf(time) {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(time).toLocaleDateString("en", { day: "numeric", month: "short" });
}

/** Make a set of radio-like buttons: arrow keys move, one is in the tab order.  Returns a function that shows the chosen one. */
export function radioGroup(group, onChoose) {
  const buttons = () => [...group.querySelectorAll('[role="radio"], [role="tab"]')];
  const mark = group.getAttribute("role") === "tablist" ? "aria-selected" : "aria-checked";
  group.addEventListener("click", (event) => {
    const button = event.target.closest('[role="radio"], [role="tab"]');
    if (button) onChoose(button.dataset.value);
  });
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const all = buttons();
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    onChoose(next.dataset.value);
    buttons().find((button) => button.dataset.value === next.dataset.value)?.focus();
  });
  return (value) => {
    for (const button of buttons()) {
      const chosen = button.dataset.value === String(value);
      button.setAttribute(mark, chosen);
      button.tabIndex = chosen ? 0 : -1;
    }
  };
}
