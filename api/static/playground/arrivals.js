/** How photographs come into the page: chosen, dropped or pasted. */
import { byId } from "./dom.js";

export const chooseFile = () => byId("file").click();

/** onFile: called with each file. */
export function listenForFiles(onFile) {
  byId("choose").onclick = byId("open").onclick = chooseFile;
  byId("file").onchange = ({ target }) => {
    onFile(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  };
  const frame = byId("view");
  frame.addEventListener("dragover", (event) => {
    event.preventDefault();
    frame.classList.add("over");
  });
  for (const name of ["dragleave", "drop"]) frame.addEventListener(name, () => frame.classList.remove("over"));
  frame.addEventListener("drop", (event) => {
    event.preventDefault();
    onFile(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) onFile(file);
  });
}
