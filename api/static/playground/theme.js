/** Light or dark: as the system is, until the user switches. */
import { byId } from "./dom.js";

const NAME = "maskfleet.theme";

export function followTheme() {
  const root = document.documentElement;
  const chosen = localStorage.getItem(NAME);
  if (chosen) root.dataset.theme = chosen;
  byId("theme").onclick = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem(NAME, root.dataset.theme);
  };
}
