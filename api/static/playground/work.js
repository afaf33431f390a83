/** The work on one picture: it goes up and is encoded, and what is asked of it becomes masks. */
import { Problem } from "./maskfleet.js";
import { Mask } from "./masks.js";

/** What Everything asks for: lower than the usual thresholds, so that the sliders find more below them without a new job. */
const FLOOR = { pred_iou_thresh: 0.75, stability_score_thresh: 0.85 };
/** What is shown of it at first: the usual thresholds of mode everything. */
export const USUAL = { score: 0.88, stability: 0.95 };
const OUTPUTS = ["coco", "masks_zip", "label_map", "overlay"];

/** Return what an object's masks are kept under: all that was asked for. */
export const askedOf = ({ points, box }) => JSON.stringify([points, box]);

export class Work {
  #api;
  #on;
  #priority = "interactive";
  #encoding = null; // ends the stream that follows the picture's encoding
  #filling = null;
  #pictures = new Map(); // of this tab's jobs
  image = null;
  /** The model's name; empty for the service's first. */
  model = "";
  answers = new Map();
  fills = new Map();

  /** on: {change(), say(text, options), job(view), sent(spec)}. */
  constructor(api, on) {
    this.#api = api;
    this.#on = on;
  }

  /** Open a picture: show it, and have it encoded while the user looks. */
  async open(file, name) {
    this.#leave();
    const image = { file, name, size: [0, 0], picture: null, imageId: null, known: null };
    this.image = image;
    image.picture = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
    if (image.picture) image.size = [image.picture.width, image.picture.height];
    if (this.image !== image) return;
    this.#on.change();
    this.#on.say("Uploading…", { busy: true });
    image.known = this.#send((priority) => this.#api.embed(file, { ...this.#model, priority, metadata: named(name) })).then((view) => {
      image.imageId = view.image_id;
      return view;
    });
    try {
      await this.#encode(image, await image.known);
    } catch (error) {
      if (this.image === image) this.#fail(error);
    }
  }

  async #encode(image, view) {
    const following = new AbortController();
    if (this.image === image) this.#encoding = following;
    this.#on.change();
    let job = null;
    for await (job of this.#api.follow(view.job_id, { signal: following.signal })) {
      this.#on.job(job);
      if (this.image === image && !job.ended_at) this.#on.say(waiting(job, "Encoding"), { busy: true });
    }
    if (this.image !== image) return;
    if (job?.status !== "succeeded") throw failure(job);
    image.size = [job.result.image.width, job.result.image.height];
    const seen = image.picture ? "" : " This browser cannot show the file; its masks are drawn on grey.";
    this.#on.say(`Ready. Click an object, drag a box, or fill the picture with Everything.${seen}`);
    this.#on.change();
  }

  /** Ask for an object's masks, unless they are there already. */
  async ask(object) {
    const asked = askedOf(object);
    const { image } = this;
    if (this.answers.has(asked) || !image?.known) return;
    this.answers.set(asked, { masks: null, error: null });
    const began = performance.now();
    try {
      await image.known;
      const spec = this.specOf(object);
      this.#on.say("Segmenting…", { busy: true });
      const job = await this.#send((priority) =>
        this.#api.run({ ...spec, priority }, { onChange: (view) => this.#began(view, image) }),
      );
      if (this.image !== image) return;
      this.answers.set(asked, { masks: await this.#masksOf(job), jobId: job.id });
      const best = Math.max(0, ...this.answers.get(asked).masks.map(({ score }) => score));
      this.#on.say(`Segmented in ${Math.round(performance.now() - began)} ms; best score ${best.toFixed(3)}.`);
      this.#on.change();
    } catch (error) {
      if (this.image !== image) return;
      this.answers.delete(asked); // so that the next click asks again
      this.#fail(error);
    }
  }

  /** Fill the picture with masks.  Returns the job's id, or null when it came to nothing. */
  async fill() {
    const { image } = this;
    if (!image?.known || this.#filling) return null;
    this.#filling = { id: null, stopped: false };
    this.#on.change();
    try {
      await image.known;
      const spec = this.fillSpec();
      this.#on.say("Sending…", { busy: true });
      // In line with other jobs: it may take minutes, and would hold up others' clicks.
      const job = await this.#api.run(spec, { waitS: 0, onChange: (view) => this.#filled(view, image) });
      const masks = await this.#masksOf(job);
      if (this.image !== image) return null;
      this.fills.set(job.id, { mode: job.mode, masks, usual: USUAL });
      this.#on.say(`Everything: ${masks.length} masks in ${job.run_s?.toFixed(1)} s. The sliders choose which are shown.`);
      return job.id;
    } catch (error) {
      if (this.image === image) this.#fail(error);
      return null;
    } finally {
      this.#filling = null;
      this.#on.change();
    }
  }

  #filled(view, image) {
    this.#began(view, image);
    if (this.#filling) this.#filling.id = view.id;
    if (this.image !== image || view.ended_at) return;
    const { progress } = view;
    this.#on.say(waiting(view, "Everything"), { busy: true, done: progress?.total ? progress.done / progress.total : null });
  }

  #began(view, image) {
    this.#pictures.set(view.id, image);
    this.#on.job(view);
  }

  get filling() {
    return this.#filling !== null;
  }

  async stopFilling() {
    if (!this.#filling?.id) return;
    await this.#api.cancel(this.#filling.id).catch((error) => this.#fail(error));
  }

  /** Whether a job is of the picture that is open. */
  holds(id) {
    return this.image !== null && this.#pictures.get(id) === this.image;
  }

  get #model() {
    return this.model ? { model: this.model } : {};
  }

  /** Show a job by its id, with its picture if it is of this tab, otherwise with its overlay.  Returns the job. */
  async openJob(id) {
    let job = await this.#api.job(id);
    const image = this.#pictures.get(id);
    if (this.holds(id)) {
      if (job.ended_at && job.status !== "succeeded") throw failure(job);
      if (job.status === "succeeded" && job.mode !== "embed") await this.#keepFill(job);
      return job;
    }
    this.#leave();
    const shown = { name: job.metadata.photo ?? id, size: [0, 0], picture: null, imageId: null, known: null };
    this.image = image ?? shown;
    const opened = this.image;
    this.#on.change();
    if (!job.ended_at) {
      const following = new AbortController();
      this.#encoding = following;
      try {
        for await (job of this.#api.follow(id, { signal: following.signal })) {
          this.#on.job(job);
          if (!job.ended_at) this.#on.say(waiting(job, "Job"), { busy: true, done: job.progress?.total ? job.progress.done / job.progress.total : null });
        }
      } catch (error) {
        if (following.signal.aborted) return null; // something else was opened
        throw error;
      }
      job = await this.#api.job(id);
    }
    if (job.status !== "succeeded") throw failure(job);
    if (job.mode !== "embed") await this.#keepFill(job, opened);
    if (!image) await this.#backdrop(job, opened);
    return this.image === opened ? job : null;
  }

  async #keepFill(job, image = this.image) {
    if (this.fills.has(job.id)) return;
    const masks = await this.#masksOf(job, image);
    this.fills.set(job.id, { mode: job.mode, masks, usual: null });
  }

  async #backdrop(job, image) {
    if (job.mode === "embed") {
      image.size = [job.result.image.width, job.result.image.height];
      this.#on.say("This job encoded a picture; it has no masks. The page does not keep pictures: open it again to click on it.");
      return;
    }
    const { files } = await this.#api.result(job.id);
    const overlay = files.find(({ name }) => name.startsWith("overlay."));
    if (overlay) image.picture = await this.#api.file(job.id, overlay.name).then(createImageBitmap).catch(() => null);
    image.tinted = image.picture !== null; // the masks' colours are in it
    this.#on.say("A finished job. The page does not keep pictures: open this one again to click on it.");
  }

  /** Return a job's masks, which are in its JSON or, when they are too large, in its coco.json. */
  async #masksOf(job, image = this.image) {
    let found = job.inline?.masks;
    if (job.inline && image) image.size = [job.inline.image_width, job.inline.image_height];
    if (!found) {
      const dataset = JSON.parse(await (await this.#api.file(job.id, "coco.json")).text());
      found = dataset.annotations;
      if (image) image.size = [dataset.images[0].width, dataset.images[0].height];
    }
    return found.map((mask) => new Mask(mask));
  }

  specOf({ points, box }) {
    const prompt = {
      ...(box ? { box } : {}),
      ...(points.length ? { points: points.map(([x, y]) => [x, y]), labels: points.map(([, , label]) => label) } : {}),
    };
    return {
      mode: box ? "box" : "point",
      image: { image_id: this.image?.imageId },
      prompts: [prompt],
      params: { multimask: true },
      inline: "rle",
      outputs: [],
      ...this.#model,
      metadata: named(this.image?.name ?? ""),
    };
  }

  fillSpec() {
    return {
      mode: "everything",
      image: { image_id: this.image?.imageId },
      params: FLOOR,
      inline: "rle",
      outputs: OUTPUTS,
      overlay_format: "webp",
      ...this.#model,
      metadata: named(this.image?.name ?? ""),
    };
  }

  /** Send with the highest priority that the key has the right to. */
  async #send(request) {
    try {
      return await request(this.#priority);
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== "missing_scope" || this.#priority === "normal") throw error;
      this.#priority = "normal";
      return request(this.#priority);
    }
  }

  #leave() {
    this.#encoding?.abort();
    this.answers.clear();
    this.fills.clear();
  }

  #fail(error) {
    if (error.name === "AbortError") return;
    if (error.code === "job_canceled") {
      this.#on.say(error.message);
      return;
    }
    const offline = error instanceof TypeError;
    this.#on.say(offline ? "The service does not answer. Check that it runs, then try again." : error.message, { failed: true, error });
  }
}

function named(name) {
  return name ? { photo: name.slice(0, 200) } : {};
}

function failure(job) {
  return new Problem(0, job?.error ?? { code: `job_${job?.status}`, detail: job?.status === "canceled" ? "Canceled." : `The job is ${job?.status ?? "gone"}.` });
}

/** Say what a job that has not ended is waiting for or doing. */
export function waiting(job, what) {
  if (job.status === "queued") {
    const ahead = job.queue_position ?? 0;
    const soon = job.starts_in_s === null ? "" : `, starts in about ${Math.ceil(job.starts_in_s)} s`;
    return `${what}: queued, ${ahead === 0 ? "next in line" : `${ahead} ahead`}${soon}`;
  }
  const { progress } = job;
  const stage = { fetching: "fetching the picture", embedding: "encoding the picture", decoding: "finding masks", writing: "writing files" };
  const share = progress?.total ? ` ${Math.round((100 * progress.done) / progress.total)} %` : "";
  return `${what}: ${stage[progress?.stage] ?? "starting"}${share}${progress?.masks ? `, ${progress.masks} masks so far` : ""}`;
}
