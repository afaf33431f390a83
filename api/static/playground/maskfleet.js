/**
 * The maskfleet API from a browser (or Node.js 20): uploads, images, jobs, events and results.
 *
 * Copy this file: it stands alone. Give it an API key on a page of your own machine, otherwise a token that your
 * server made (docs/browser.md). Everything returned is the API's own JSON, as /openapi.json describes it.
 */

const UPLOAD_TYPES = ["image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp", "image/gif"];
/** How long to wait before the connection to an event stream is made again, in milliseconds. */
const RECONNECT_MS = [500, 1000, 2000, 5000];

/** Why the API refused a request: `code` is stable, `message` says what to do. */
export class Problem extends Error {
  constructor(status, body, retryAfterS = null) {
    super(body.detail ?? `The service answered with status ${status}.`);
    this.name = "Problem";
    this.status = status;
    this.code = body.code ?? "unknown";
    this.errors = body.errors ?? [];
    this.retryAfterS = retryAfterS;
  }
}

export class Maskfleet {
  #url;
  #key;

  /** url: the API's, such as "https://masks.example.com".  key: an API key or a token. */
  constructor(url, key) {
    this.#url = String(url).replace(/\/+$/, "");
    this.#key = key;
  }

  /** Upload a file straight to the object store; return its upload_id. */
  async upload(file, { signal } = {}) {
    const type = UPLOAD_TYPES.includes(file.type) ? file.type : "application/octet-stream";
    const upload = await this.#json("POST", "/v1/uploads", { body: { content_type: type, size: file.size }, signal });
    // A browser sets Content-Length by itself, and lets no page set it.
    const headers = Object.fromEntries(Object.entries(upload.headers).filter(([name]) => name !== "Content-Length"));
    const put = await fetch(upload.url, { method: upload.method, headers, body: file, signal });
    await put.arrayBuffer(); // it is empty; unread, the connection would be broken off
    if (!put.ok) throw new Problem(put.status, { code: "upload_failed", detail: "The object store refused the upload." });
    return upload.upload_id;
  }

  /** Upload an image and have it encoded, so that jobs which name its image_id start at once. */
  async embed(file, { signal, ...fields } = {}) {
    let upload_id;
    try {
      upload_id = await this.upload(file, { signal });
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      // The store takes nothing from this page (it has no CORS rule for it): send the file through the API.
      const form = new FormData();
      form.append("image", file);
      if (Object.keys(fields).length) form.append("job", new Blob([JSON.stringify(fields)], { type: "application/json" }));
      return this.#json("POST", "/v1/images", { form, signal });
    }
    return this.#json("POST", "/v1/images", { body: { ...fields, image: { upload_id } }, signal });
  }

  /** Get an image that was made known: whether it is encoded, and its size. */
  image(imageId) {
    return this.#json("GET", `/v1/images/${encodeURIComponent(imageId)}`);
  }

  /** Send a job.  waitS: hold the response until the job ends, for at most so long. */
  submit(spec, { waitS = 0, signal, idempotencyKey = crypto.randomUUID() } = {}) {
    return this.#json("POST", "/v1/jobs", { body: spec, waitS, signal, headers: { "Idempotency-Key": idempotencyKey } });
  }

  /** Send a job and wait for its end, however long it takes.  Throws Problem with the job's error code if it failed. */
  async run(spec, { waitS = 20, signal, onChange } = {}) {
    let job = await this.submit(spec, { waitS, signal });
    onChange?.(job);
    if (!job.ended_at) {
      for await (job of this.follow(job.id, { signal })) onChange?.(job);
      job = await this.job(job.id); // events carry no masks
    }
    if (job.status === "succeeded") return job;
    throw new Problem(0, job.error ?? { code: `job_${job.status}`, detail: `The job was ${job.status}.` });
  }

  job(id, { waitS = 0, signal } = {}) {
    return this.#json("GET", `/v1/jobs/${encodeURIComponent(id)}`, { waitS, signal });
  }

  /** List jobs, newest first; `next_cursor` continues the list. */
  jobs({ limit = 20, status, cursor } = {}) {
    const query = new URLSearchParams({ limit });
    if (status) query.set("status", status);
    if (cursor) query.set("cursor", cursor);
    return this.#json("GET", `/v1/jobs?${query}`);
  }

  cancel(id) {
    return this.#json("POST", `/v1/jobs/${encodeURIComponent(id)}/cancel`);
  }

  /** Queue a failed job again, under the same id. */
  retry(id) {
    return this.#json("POST", `/v1/jobs/${encodeURIComponent(id)}/retry`);
  }

  /** Get a job's manifest: a summary of each mask, and each file with a link that works for a while. */
  result(id) {
    return this.#json("GET", `/v1/jobs/${encodeURIComponent(id)}/result`);
  }

  /** Read one file of a result, such as "coco.json". */
  async file(id, name) {
    const { files } = await this.result(id);
    const found = files.find((file) => file.name === name);
    if (!found) throw new Problem(404, { code: "file_not_found", detail: `The result has no file ${name}.` });
    const response = await fetch(found.url); // the link is enough; the key is for the API alone
    if (!response.ok) throw new Problem(response.status, { code: "file_not_read", detail: `${name} could not be read.` });
    return response.blob();
  }

  models() {
    return this.#json("GET", "/v1/models");
  }

  /**
   * Follow a job: yield it now, then after each change, until it has ended.
   *
   * By fetch, not by EventSource, which sends no headers: the key is in no URL.  A connection that breaks is made again.
   */
  async *follow(id, { signal } = {}) {
    let seen = null;
    let failures = 0;
    for (;;) {
      try {
        const headers = { Accept: "text/event-stream", ...(seen === null ? {} : { "Last-Event-ID": seen }) };
        const response = await this.#send("GET", `/v1/jobs/${encodeURIComponent(id)}/events`, { headers, signal });
        if (response.status === 204) return;
        for await (const event of events(response.body)) {
          failures = 0;
          if (event.id !== null) seen = event.id;
          const job = JSON.parse(event.data);
          yield job;
          if (job.ended_at) return;
        }
      } catch (error) {
        const temporary = error instanceof TypeError || (error instanceof Problem && (error.status === 429 || error.status >= 500));
        if (signal?.aborted || !temporary) throw error;
      }
      await pause(RECONNECT_MS[Math.min(failures++, RECONNECT_MS.length - 1)], signal);
    }
  }

  async #json(method, path, options = {}) {
    const response = await this.#send(method, path, options);
    return response.status === 204 ? null : response.json();
  }

  async #send(method, path, { body, form, waitS = 0, headers = {}, signal } = {}) {
    const response = await fetch(`${this.#url}${path}`, {
      method,
      signal,
      body: form ?? (body === undefined ? undefined : JSON.stringify(body)),
      headers: {
        Authorization: `Bearer ${this.#key}`,
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(waitS ? { Prefer: `wait=${waitS}` } : {}),
        ...headers,
      },
    });
    if (response.ok) return response;
    const retryAfterS = Number(response.headers.get("Retry-After")) || null;
    throw new Problem(response.status, await response.json().catch(() => ({})), retryAfterS);
  }
}

/** Read Server-Sent Events.  Source: HTML Living Standard, section "Server-sent events". */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (text + value).replaceAll("\r\n", "\n").split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = { id: null, data: "" };
        for (const line of block.split("\n")) {
          const [, name, content] = /^(\w+): ?(.*)$/.exec(line) ?? [];
          if (name === "id") event.id = content;
          if (name === "data") event.data += content;
        }
        if (event.data) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
