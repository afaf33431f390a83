// One job with the client that openapi-typescript makes from the service's own OpenAPI document.  Prints a line of JSON.
import { readFile } from "node:fs/promises";

import createClient from "openapi-fetch";

import type { paths } from "./schema.js";

const [url, key, photo] = process.argv.slice(2);
if (!url || !key || !photo) throw new Error("node job.js URL KEY PHOTO");
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

// The photo goes straight to the store, by a link.
const bytes = await readFile(photo);
const upload = await client.POST("/v1/uploads", { body: { content_type: "image/png", size: bytes.length } });
if (!upload.data) throw new Error(upload.error.code);
const stored = await fetch(upload.data.url, { method: "PUT", headers: upload.data.headers, body: bytes });
if (!stored.ok) throw new Error(`${stored.status}`);

const sent = await client.POST("/v1/jobs", {
  body: {
    mode: "box",
    image: { upload_id: upload.data.upload_id },
    prompts: [{ box: [304, 14, 366, 73] }],
    outputs: ["coco"],
  },
});
if (!sent.data) throw new Error(sent.error.code);

// Held until the job has ended, or for half a minute: then once more.
let job = sent.data;
while (!job.ended_at) {
  const held = await client.GET("/v1/jobs/{job_id}", {
    params: { path: { job_id: job.id }, header: { Prefer: "wait=30" } },
  });
  if (!held.data) throw new Error(held.error.code);
  job = held.data;
}
if (job.status !== "succeeded") throw new Error(job.error?.code ?? job.status);

const result = await client.GET("/v1/jobs/{job_id}/result", { params: { path: { job_id: job.id } } });
if (!result.data) throw new Error(result.error.code);

const missing = await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id: `job_${"0".repeat(32)}` } } });

console.log(
  JSON.stringify({
    status: job.status,
    areas: result.data.masks.map((mask) => mask.area),
    files: result.data.files.map((file) => file.name),
    refused: missing.error?.code,
  }),
);
