/** Keyboard shortcuts.  Those of a single key can be switched off, for people who dictate (WCAG 2.2, 2.1.4). */
import { byId } from "./dom.js";

const OFF = "maskfleet.no-single-keys";

/** on: what each shortcut does. */
export function listenToKeys(on) {
  const single = byId("single-keys");
  single.checked = localStorage.getItem(OFF) === null;
  single.onchange = () => (single.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "1"));
  const keys = {
    p: () => on.tool("add"),
    m: () => on.tool("remove"),
    b: () => on.tool("box"),
    n: on.newObject,
    e: on.everything,
    u: on.undo,
    r: on.redo,
    h: on.hide,
    a: on.all,
    o: on.open,
    1: () => on.candidate(0),
    2: () => on.candidate(1),
    3: () => on.candidate(2),
    delete: on.remove,
    backspace: on.remove,
    "?": on.help,
  };
  document.addEventListener("keydown", (event) => {
    if (byId("shortcuts").open || event.target.matches('input:not([type="range"], [type="checkbox"], [type="color"]), select, textarea')) return;
    const key = event.key.toLowerCase();
    const command = event.ctrlKey || event.metaKey;
    if (command && key === "z") (event.shiftKey ? on.redo : on.undo)();
    else if (command && key === "y") on.redo();
    else if (!command && !event.altKey && single.checked && keys[key]) keys[key]();
    else return;
    event.preventDefault();
  });
}
