/** The playground: joins the picture, the masks, the jobs and the API. */
import { chooseFile, listenForFiles } from "./arrivals.js";
import { asCurl, asPython } from "./code.js";
import { byId, element, icon, radioGroup } from "./dom.js";
import { FORMATS, save } from "./files.js";
import { History } from "./history.js";
import { JobList } from "./joblist.js";
import { forgetKey, keepKey, keptKey, readFragment } from "./key.js";
import { Maskfleet, Problem } from "./maskfleet.js";
import { MaskList } from "./masklist.js";
import { listenToKeys } from "./shortcuts.js";
import { allMasks, answerOf } from "./shown.js";
import { Stage } from "./stage.js";
import { followTheme } from "./theme.js";
import { Work, askedOf } from "./work.js";

const API_URL = new URL(".", document.baseURI).href.replace(/\/$/, "");
const EXAMPLES = { pebbles: "Pebbles", buttons: "Buttons", shapes: "Shapes" };
const DEMO_MODEL = "sam-demo";

const view = { opacity: 0.5, shown: true, marked: null, least: { score: 0, stability: 0, area: 0 } };
let api = null;
let jobs = null;
let work = null;
let tool = "add";
let numbers = 0; // of objects; never used again

const history_ = new History(render);
const stage = new Stage(byId("picture"), byId("tip"), {
  point: (x, y, label) => addPoint(x, y, label),
  box: (box) => addBox(box),
  hover: (key) => masks.light(key),
  say: (text) => (byId("spoken").textContent = text),
});
const masks = new MaskList({
  look: (key, look) => history_.step({ looks: { ...history_.now.looks, [key]: { ...history_.now.looks[key], ...look } } }),
  choose: (key) => chooseMask(key),
  candidate: (number) => changeCurrent({ chosen: number }),
  light: (key) => {
    stage.light(key);
    masks.light(key);
  },
  filter: (least) => {
    view.least = least;
    render();
  },
  opacity: (opacity) => {
    view.opacity = opacity;
    render();
  },
  all: (shown) => showAll(shown),
});
const showTool = radioGroup(byId("tool"), chooseTool);
const showTab = radioGroup(byId("tabs"), chooseTab);

// What the user does to the picture.

const currentObject = () => history_.now.objects.find(({ id }) => id === history_.now.current);

const clickable = () => Boolean(work?.image?.known);

function addPoint(x, y, label) {
  if (!clickable()) return say("Open a photograph to click on it.");
  const object = currentObject() ?? newObject();
  putObject({ ...object, points: [...object.points, [x, y, label]], chosen: null, before: answered(object) });
}

function addBox(box) {
  if (!clickable()) return say("Open a photograph to draw on it.");
  const current = currentObject();
  putObject({ ...(current && !current.box && !current.points.length ? current : newObject()), box });
}

function newObject() {
  return { id: ++numbers, points: [], box: null, chosen: null, before: null };
}

/** Return what was asked of an object when it was last answered: those masks are shown until there are newer ones. */
const answered = (object) => (work.answers.get(askedOf(object))?.masks ? askedOf(object) : object.before);

function putObject(object) {
  const { objects } = history_.now;
  const known = objects.some(({ id }) => id === object.id);
  const changed = known ? objects.map((one) => (one.id === object.id ? object : one)) : [...objects, object];
  view.marked = null;
  history_.step({ objects: changed, current: object.id });
  work.ask(object);
}

function changeCurrent(change) {
  const current = currentObject();
  if (!current) return;
  history_.step({ objects: history_.now.objects.map((one) => (one === current ? { ...one, ...change } : one)) });
}

function startObject() {
  if (!clickable()) return;
  history_.step({ current: null });
  say("The next click begins a new object.");
}

function removeCurrent() {
  const current = currentObject();
  if (current) history_.step({ objects: history_.now.objects.filter((one) => one !== current), current: null });
}

function chooseMask(key) {
  view.marked = view.marked === key ? null : key;
  const id = Number(key.slice(1));
  if (key.startsWith("o")) history_.step({ current: id });
  else render();
}

function hideLit() {
  const key = stage.hovered ?? view.marked ?? (history_.now.current && `o${history_.now.current}`);
  if (!key) return;
  const look = history_.now.looks[key];
  history_.step({ looks: { ...history_.now.looks, [key]: { ...look, hidden: !look?.hidden } } });
}

function showAll(shown) {
  view.shown = shown;
  render();
}

async function fillPicture() {
  if (work?.filling) return work.stopFilling();
  if (!clickable()) return undefined;
  const id = await work.fill();
  if (!id) return undefined;
  showFill(id);
  return undefined;
}

function showFill(id) {
  const fill = work.fills.get(id);
  if (!fill) return;
  view.least = masks.limits(fill);
  view.marked = null;
  history_.step({ current: null, everything: id, looks: withoutFill(history_.now.looks) });
}

const withoutFill = (looks) => Object.fromEntries(Object.entries(looks).filter(([key]) => key.startsWith("o")));

// What is shown.

const masksNow = () => allMasks(history_.now, work, view.least);

/** Return those that are neither hidden nor below the thresholds. */
const shownOf = (all) => (view.shown ? all.filter(({ passes, hidden }) => passes && !hidden) : []);

function render() {
  const all = masksNow();
  const shown = shownOf(all);
  const image = work?.image ?? null;
  const { objects, current } = history_.now;
  byId("welcome").hidden = !api || image !== null;
  byId("picture").hidden = image === null;
  byId("tools").hidden = image === null;
  byId("side").hidden = image === null;
  byId("jobs").hidden = !api;
  document.querySelector("main").classList.toggle("quietly", image === null);
  document.querySelector("main").classList.toggle("listed", api !== null);
  const frame = byId("view");
  frame.classList.toggle("full", image !== null);
  if (image?.size[0]) frame.style.setProperty("--ratio", String(image.size[0] / image.size[1]));
  stage.show({
    size: image?.size ?? [0, 0],
    picture: image?.picture ?? null,
    shown,
    objects,
    current,
    opacity: view.opacity,
    tinted: Boolean(image?.tinted),
    tool,
    marked: view.marked ?? (current && `o${current}`),
  });
  for (const button of document.querySelectorAll("#tool button, #new-object")) button.disabled = !clickable();
  byId("undo").disabled = !history_.canUndo;
  byId("redo").disabled = !history_.canRedo;
  byId("everything").disabled = !clickable();
  byId("everything").lastElementChild.textContent = work?.filling ? "Cancel" : "Everything";
  masks.show({ all, fill: work?.fills.get(history_.now.everything), view, current: currentObject(), answer: answerOf(work, currentObject()), image });
  byId("shown-count").textContent = `${shown.length} ${shown.length === 1 ? "mask" : "masks"}`;
  for (const button of byId("formats").querySelectorAll("button")) button.disabled = shown.length === 0;
  byId("model-note").hidden = !image?.file || image.file.example || (work.model || byId("model").value) !== DEMO_MODEL;
  showCode();
}

function showCode() {
  const current = currentObject();
  const spec = work?.image?.imageId && (current ? work.specOf(current) : work.fillSpec());
  byId("code-note").textContent = spec
    ? `The same request from a terminal or a program: ${current ? "the current object" : "Everything"}. The picture is named by its id, which is kept for a week.`
    : "Open a photograph; then the request for its masks is here.";
  byId("curl").textContent = spec ? asCurl(API_URL, spec) : "";
  byId("python").textContent = spec ? asPython(spec) : "";
}

function say(text, { busy = false, done = null, failed = false, error = null } = {}) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
  byId("status-row").classList.toggle("failed", failed);
  const bar = byId("progress");
  bar.hidden = !busy;
  if (done === null) bar.removeAttribute("value");
  else bar.value = done;
  if (error) refused(error);
}

// Pictures and jobs.

async function openFile(file, name = file?.name) {
  if (!file) return;
  if (!api) {
    say("Connect to the service first.", { failed: true });
    return;
  }
  history_.clear();
  view.least = { score: 0, stability: 0, area: 0 };
  view.marked = null;
  jobs.open(null);
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  byId("picture").hidden = false;
  await work.open(file, name);
}

async function openExample(name) {
  try {
    const response = await fetch(`playground/pictures/${name}.jpg`);
    await openFile(Object.assign(new File([await response.blob()], `${name}.jpg`, { type: "image/jpeg" }), { example: true }));
  } catch {
    say("The example could not be read.", { failed: true });
  }
}

/** Open the job that the address names, if it names one. */
async function openAddress() {
  const { job: id } = readFragment();
  if (!id) return;
  const here = work.holds(id);
  if (!here) history_.clear();
  say("Opening the job…", { busy: true });
  jobs.open(id);
  try {
    const job = await work.openJob(id);
    if (!job) return;
    jobs.note(job);
    if (work.fills.has(id)) showFill(id);
    if (here) say(`Job ${id}.`);
  } catch (error) {
    say(error.message, { failed: true, error });
  }
  render();
}

/** Try the key that there is; ask for one if there is none, or if it is refused. */
async function connect() {
  const key = keptKey();
  byId("key-form").hidden = Boolean(key);
  byId("forget").hidden = !key;
  if (!key) {
    render();
    byId("key").focus();
    return;
  }
  const tried = new Maskfleet(API_URL, key);
  try {
    const { models } = await tried.models();
    api = tried;
    showModels(models);
    work = new Work(api, { change: render, say, job: (job) => jobs.note(job) });
    jobs = new JobList(byId("job-list"), byId("more-jobs"), api, { say, refused });
    say("");
    render();
    await openAddress();
  } catch (error) {
    if (error instanceof Problem && error.status === 403) error.status = 401; // of no use here either
    if (error instanceof Problem) say(error.message, { failed: true, error });
    else say("The service does not answer. Check that it runs, then load this page again.", { failed: true });
  }
}

/** Ask for a key again when this one is not accepted any more. */
function refused(error) {
  if (error.status !== 401) return;
  forgetKey();
  reconnect();
  byId("key-problem").textContent = error.message;
}

/** Begin again with the key that there is now, or ask for one. */
function reconnect() {
  jobs?.close();
  if (work) work.image = null;
  api = jobs = work = null;
  byId("key-problem").textContent = "";
  byId("key").value = "";
  byId("model-field").hidden = true;
  history_.clear();
  say("");
  connect();
}

function showModels(models) {
  const select = byId("model");
  select.replaceChildren(...models.map(({ name }) => element("option", { value: name, textContent: name.split("/").at(-1) })));
  byId("model-field").hidden = models.length === 0;
  byId("model-field").classList.toggle("single", models.length === 1);
  byId("demo-note").hidden = models[0]?.name !== DEMO_MODEL;
}

// The page's own controls.

function chooseTool(value) {
  tool = value;
  showTool(tool);
  stage.show({ tool });
}

function chooseTab(value) {
  showTab(value);
  for (const name of ["masks", "files", "code"]) byId(`panel-${name}`).hidden = name !== value;
}

async function download(format) {
  const { image } = work;
  say(`Writing ${format.label}…`, { busy: true });
  const blob = await format.write({ ...image, shown: shownOf(masksNow()), opacity: image.tinted ? 0 : view.opacity });
  save(blob, `${image.name.replace(/\.\w+$/, "")}-${format.name}`);
  say(`${format.label} saved.`);
}

byId("examples").append(
  ...Object.entries(EXAMPLES).map(([name, label]) =>
    element(
      "li",
      {},
      element(
        "button",
        { type: "button", onclick: () => openExample(name) },
        element("img", { src: `playground/pictures/${name}.jpg`, alt: "", width: 960, height: 720 }),
        element("span", {}, label),
      ),
    ),
  ),
);
byId("formats").append(
  ...Object.entries(FORMATS).map(([key, format]) =>
    element(
      "li",
      {},
      element(
        "button",
        { type: "button", "data-format": key, onclick: () => download(format) },
        icon("download"),
        element("span", {}, format.label),
        element("small", {}, format.detail),
      ),
    ),
  ),
);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value);
  byId("key-problem").textContent = "";
  connect();
});
byId("forget").onclick = () => {
  forgetKey();
  reconnect();
};
byId("model").onchange = ({ target }) => {
  work.model = target.value;
  if (work.image?.file) openFile(work.image.file, work.image.name);
};
byId("new-object").onclick = startObject;
byId("undo").onclick = () => history_.undo();
byId("redo").onclick = () => history_.redo();
byId("everything").onclick = fillPicture;
byId("keys").onclick = () => byId("shortcuts").showModal();
for (const button of document.querySelectorAll("[data-copy]")) {
  button.onclick = async () => {
    await navigator.clipboard.writeText(byId(button.dataset.copy).textContent);
    say("Copied.");
  };
}
window.addEventListener("hashchange", () => {
  if (new URLSearchParams(location.hash.slice(1)).has("key")) {
    readFragment();
    reconnect();
  } else if (api) openAddress();
});
listenToKeys({
  undo: () => history_.undo(),
  redo: () => history_.redo(),
  tool: chooseTool,
  everything: fillPicture,
  newObject: startObject,
  candidate: (number) => masks.hasCandidate(number) && changeCurrent({ chosen: number }),
  hide: hideLit,
  all: () => showAll(!view.shown),
  remove: removeCurrent,
  open: () => api && chooseFile(),
  help: () => byId("shortcuts").showModal(),
});

listenForFiles((file) => openFile(file));
followTheme();
chooseTool("add");
readFragment(); // takes the key out of the address
connect();
