/** The jobs of the key, newest first, each followed while it runs. */
import { agoOf, element, icon, inSeconds } from "./dom.js";
import { save } from "./files.js";
import { waiting } from "./work.js";

/** Each followed job holds a connection; the others are asked for every now and then. */
const MAX_FOLLOWED = 4;
const LOOK_AGAIN_MS = 15_000;

const MODES = { everything: "Everything", point: "Point", box: "Box", embed: "Encoding" };
const ICONS = { everything: "grid", point: "plus", box: "box", embed: "image" };
const STATES = { queued: "Queued", processing: "Running", succeeded: "Done", failed: "Failed", canceled: "Canceled", expired: "Expired" };

export class JobList {
  #list;
  #more;
  #api;
  #on;
  #jobs = new Map();
  #items = new Map();
  #followed = new Map();
  #cursor = null;
  #opened = null;
  #timer;

  /** on: {say(text, options), refused(error)}. */
  constructor(list, more, api, on) {
    this.#list = list;
    this.#more = more;
    this.#api = api;
    this.#on = on;
    more.onclick = () => this.#load(this.#cursor);
    this.#timer = setInterval(() => document.hidden || this.#load(), LOOK_AGAIN_MS);
    this.#load();
  }

  close() {
    clearInterval(this.#timer);
    for (const following of this.#followed.values()) following.abort();
    this.#list.replaceChildren();
    this.#more.hidden = true;
  }

  async #load(cursor = null) {
    try {
      const page = await this.#api.jobs({ cursor });
      if (cursor || this.#jobs.size === 0) this.#cursor = page.next_cursor;
      this.#more.hidden = !this.#cursor;
      for (const job of page.jobs) this.note(job);
      if (!page.jobs.length && !this.#jobs.size) this.#list.replaceChildren(element("li", { class: "none" }, "No jobs yet."));
    } catch (error) {
      this.#on.refused(error);
    }
  }

  /** Take in what is now known of a job. */
  note(job) {
    const known = this.#jobs.get(job.id);
    if (known?.ended_at && !job.ended_at && known.attempt >= job.attempt && known.status !== "failed") return; // late news
    this.#jobs.set(job.id, job);
    this.#show(job);
    if (!job.ended_at && !this.#followed.has(job.id) && this.#followed.size < MAX_FOLLOWED) this.#follow(job.id);
  }

  /** Mark the job that is open, and show its details. */
  open(id) {
    const before = this.#opened;
    this.#opened = id;
    for (const one of [before, id]) if (this.#jobs.has(one)) this.#show(this.#jobs.get(one));
  }

  async #follow(id) {
    const following = new AbortController();
    this.#followed.set(id, following);
    try {
      for await (const job of this.#api.follow(id, { signal: following.signal })) this.note(job);
    } catch (error) {
      if (!following.signal.aborted) this.#on.refused(error);
    } finally {
      this.#followed.delete(id);
    }
  }

  #show(job) {
    this.#list.querySelector(".none")?.remove();
    let item = this.#items.get(job.id);
    if (!item) {
      item = new Item(job, { cancel: () => this.#do("cancel", job.id), retry: () => this.#do("retry", job.id), file: (file) => this.#fetch(job.id, file) });
      this.#items.set(job.id, item);
      // Ids are not in the order of creation; times are.
      const later = [...this.#list.children].find((other) => other.dataset.created < job.created_at);
      this.#list.insertBefore(item.root, later ?? null);
    }
    item.show(job, job.id === this.#opened);
    if (job.id === this.#opened && job.status === "succeeded" && !item.hasFiles) {
      this.#api.result(job.id).then(({ files }) => item.files(files), this.#on.refused);
    }
  }

  async #do(action, id) {
    try {
      this.note(await this.#api[action](id));
    } catch (error) {
      this.#on.say(error.message, { failed: true });
    }
  }

  async #fetch(id, name) {
    try {
      save(await this.#api.file(id, name), `${id}-${name.replaceAll("/", "-")}`);
    } catch (error) {
      this.#on.say(error instanceof TypeError ? "The object store does not let this page read the file." : error.message, { failed: true });
    }
  }
}

/** One job's entry, whose elements stay the same while it changes, so that the keyboard's focus stays where it is. */
class Item {
  hasFiles = false;

  constructor(job, on) {
    this.state = element("span", { class: "pill" });
    this.note = element("span", { class: "job-note" });
    this.link = element(
      "a",
      { class: "job-link", href: `#job=${job.id}` },
      icon(ICONS[job.mode] ?? "grid"),
      element("span", { class: "job-title" }, MODES[job.mode] ?? job.mode),
      this.state,
      this.note,
    );
    this.bar = element("progress", { "aria-label": "Progress" });
    this.doing = element("span", { class: "job-doing" });
    this.cancel = element("button", { class: "small", type: "button", onclick: on.cancel, "aria-label": `Cancel job ${short(job)}` }, "Cancel");
    this.retry = element("button", { class: "small", type: "button", onclick: on.retry, "aria-label": `Retry job ${short(job)}` }, "Retry");
    this.facts = element("dl", { class: "facts" });
    this.fileList = element("div", { class: "job-files" });
    this.live = element("div", { class: "job-live" }, this.doing, this.bar);
    this.details = element("div", { class: "job-details" }, this.facts, this.fileList);
    this.actions = element("div", { class: "job-actions" }, this.cancel, this.retry);
    this.root = element("li", { class: "job", "data-id": job.id, "data-created": job.created_at }, this.link, this.live, this.actions, this.details);
    this.onFile = on.file;
  }

  show(job, opened) {
    const running = !job.ended_at;
    this.root.dataset.status = job.status;
    this.state.textContent = STATES[job.status] ?? job.status;
    const time = job.run_s === null || running ? agoOf(job.created_at) : `${inSeconds(job.run_s)} · ${agoOf(job.created_at)}`;
    this.note.textContent = [job.metadata.photo, time].filter(Boolean).join(" · ");
    this.live.hidden = !running;
    if (running) {
      this.doing.textContent = waiting(job, "").replace(/^: /, "");
      if (job.progress?.total) this.bar.value = job.progress.done / job.progress.total;
      else this.bar.removeAttribute("value");
    }
    this.cancel.hidden = !running;
    this.cancel.disabled = job.cancel_requested;
    this.retry.hidden = job.status !== "failed";
    this.actions.hidden = this.cancel.hidden && this.retry.hidden;
    if (opened) this.link.setAttribute("aria-current", "true");
    else this.link.removeAttribute("aria-current");
    this.details.hidden = !opened;
    if (opened) this.facts.replaceChildren(...factsOf(job).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  }

  files(files) {
    this.hasFiles = true;
    const few = files.filter(({ name }) => !name.includes("/"));
    this.fileList.replaceChildren(
      ...few.map(({ name }) => element("button", { class: "small", type: "button", onclick: () => this.onFile(name) }, icon("download"), name)),
    );
  }
}

const short = ({ id }) => id.slice(0, 12);

function factsOf(job) {
  const metrics = job.result?.metrics;
  return [
    ["Id", job.id],
    ["Model", job.model],
    ["Priority", job.priority],
    ["Waited", job.queue_s === null ? null : inSeconds(job.queue_s)],
    ["Ran", job.run_s === null ? null : inSeconds(job.run_s)],
    ["Masks", job.result && job.mode !== "embed" ? String(job.result.masks) : null],
    ["Embedding", metrics?.embedding],
    ["Attempts", job.attempt > 1 ? String(job.attempt) : null],
    ["Error", job.error ? `${job.error.code}: ${job.error.detail}` : null],
  ].filter(([, value]) => value);
}
