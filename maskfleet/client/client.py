"""A server's jobs, from Python.

from maskfleet import Client, Prompt

with Client("http://127.0.0.1:8000", "mf_…") as client:
    job = client.submit(photo="examples/coins.png", mode="box", prompts=[Prompt(box=(304, 14, 366, 73))])
    client.wait(job.id)
    client.fetch(job.id, "masks")
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self, Unpack

import requests

from maskfleet.client.download import download, read_file
from maskfleet.client.errors import ApiError, Conflict, NotFound, Refused, WaitTimeout, refused_here
from maskfleet.client.events import follow
from maskfleet.client.submission import (
    JobFields,
    JobOptionFields,
    Photo,
    batch_document,
    complete,
    document_of,
    embed_request,
    image_type,
    known_image,
    source_of,
)
from maskfleet.client.transport import MAX_TRIES, Transport
from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.api import (
    DeliveryList,
    JobPage,
    ModelList,
    ModelView,
    PingView,
    Redeliveries,
    TokenView,
    UploadView,
    WebhookSecretView,
)
from maskfleet.jobs.schema.batch import BatchFailure, BatchFailures, BatchView
from maskfleet.jobs.schema.delivery import DeliveryView
from maskfleet.jobs.schema.fleet import FleetView, ModelFleet
from maskfleet.jobs.schema.image import ImageView
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import AnySpec, JobView
from maskfleet.jobs.schema.spec import IMAGE_COMES_BESIDE, EmbedRequest, ImageSource

#: Photos larger than this are uploaded straight to the store, not through the API.
MULTIPART_BYTES = 8 * 2**20
#: How long the API may hold a response: long if only the end matters, short to see progress.
HELD_S, HELD_FOR_PROGRESS_S = 20, 1
#: A ping takes a courier's tick and the receiver's time to respond, 15 s by default.
HELD_FOR_PING_S = 20
#: A stream that lasts less than this is not worth opening, or is not a stream.
SHORTEST_STREAM_S = 1.0


class Client:
    """A connection to one server; close it, or use it in a ``with``.

    A call that fails raises a subclass of ``errors.ApiError``.  While the server is unavailable, calls are
    retried for about ten seconds; every call is safe to repeat.
    """

    def __init__(
        self,
        api_url: str,
        api_key: str,
        *,
        max_tries: int = MAX_TRIES,
        on_retry: Callable[[str], object] | None = None,
    ) -> None:
        """on_retry: called with a sentence before each wait for another try.

        Raises Refused (``invalid_api_url``, ``invalid_api_key``).
        """
        self._transport = Transport(api_url, api_key, max_tries=max_tries, on_retry=on_retry)

    @property
    def api_url(self) -> str:
        """The server's URL."""
        return self._transport.api_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def submit(
        self,
        spec: AnySpec | None = None,
        *,
        photo: Photo | None = None,
        image_id: str | None = None,
        idempotency_key: str | None = None,
        held_s: int = 0,
        **fields: Unpack[JobFields],
    ) -> JobView:
        """Submit a job: a ``spec``, or its fields as keywords; ``photo`` or ``image_id`` replaces the image's source.

        image_id: of an image that ``embed_image`` made known.  idempotency_key: random by default; pass your own so
        that a repeated call returns this job again.
        held_s: wait up to this long for the job's end, in the same request; with ``inline``, its masks come with it.
        Raises Refused (``invalid_spec``, ``image_not_known``, …), OSError when the photo cannot be read.
        """
        if photo is not None and image_id is not None:
            raise TypeError("Pass either a photo or an image_id, not both.")
        try:
            source, data = (None, None) if photo is None else source_of(photo)
            spec = complete(spec, fields, known_image(image_id) if image_id is not None else source)
        except InvalidRequest as error:
            raise refused_here(error) from error
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        response = self._send("/v1/jobs", spec, data, headers, held_s=held_s)
        return JobView.model_validate_json(response.content)

    def embed_image(
        self,
        photo: Photo,
        *,
        idempotency_key: str | None = None,
        held_s: int = 0,
        **fields: Unpack[JobOptionFields],
    ) -> ImageView:
        """Make an image known: it is encoded now, so that jobs which name its ``image_id`` start at once.

        held_s: how long the API may wait until it is encoded; ``wait(image.job_id)`` waits longer.
        Raises Refused (``invalid_spec``, …), OSError when the photo cannot be read.
        """
        try:
            source, data = source_of(photo)
            spec = embed_request(source, fields)
        except InvalidRequest as error:
            raise refused_here(error) from error
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        response = self._send("/v1/images", spec, data, headers, held_s=held_s)
        return ImageView.model_validate_json(response.content)

    def image(self, image_id: str, *, held_s: int = 0) -> ImageView:
        """Return an image that was made known, now, or once it is encoded, if that is within ``held_s``."""
        headers = {"Prefer": f"wait={held_s}"} if held_s else {}
        response = self._transport.call("GET", f"/v1/images/{image_id}", headers=headers, held_s=held_s)
        return ImageView.model_validate_json(response.content)

    def delete_image(self, image_id: str) -> None:
        """Delete an image's embeddings and forget its id; what was uploaded stays.

        Raises Conflict while it is being encoded, NotFound if it is unknown or already deleted.
        """
        self._transport.call("DELETE", f"/v1/images/{image_id}")

    def _send(
        self, path: str, spec: AnySpec | EmbedRequest, data: bytes | None, headers: dict[str, str], *, held_s: int = 0
    ) -> requests.Response:
        """Send a job, with its image's bytes if there are any: beside it, or uploaded first."""
        if data is not None and len(data) > MULTIPART_BYTES:
            image = spec.image.model_copy(update={"upload_id": self.upload(data)})
            spec = spec.model_copy(update={"image": image})
            data = None
        try:
            return self._post(path, spec, data, headers, held_s)
        except ApiError as error:
            if error.code != "too_many_held":
                raise
            return self._post(path, spec, data, headers, 0)  # the server has no room to hold this response

    def _post(
        self, path: str, spec: AnySpec | EmbedRequest, data: bytes | None, headers: dict[str, str], held_s: int
    ) -> requests.Response:
        headers = headers | ({"Prefer": f"wait={held_s}"} if held_s else {})
        if data is None:
            headers = {**headers, "Content-Type": "application/json"}
            body = document_of(spec, with_image=True)
            return self._transport.call("POST", path, data=body, headers=headers, held_s=held_s)
        parts = {
            "job": ("job.json", document_of(spec, with_image=False), "application/json"),
            "image": (spec.image.file_name or "image", data, image_type(data)),
        }
        return self._transport.call("POST", path, files=parts, headers=headers, held_s=held_s)

    def submit_batch(self, photos: Sequence[Photo], **fields: Unpack[JobFields]) -> BatchView:
        """Submit many photos as one batch whose jobs share these fields.  Every call creates a new batch.

        Photos that are files or bytes are uploaded first, one by one.  The webhook event ``completed`` is for the whole
        batch.  Raises Refused (``invalid_spec``, …), OSError when a photo cannot be read.
        """
        images: list[ImageSource] = []
        try:
            batch_document([IMAGE_COMES_BESIDE] * len(photos), fields)  # report errors before any upload
            for photo in photos:
                source, data = source_of(photo)
                images.append(source if data is None else source.model_copy(update={"upload_id": self.upload(data)}))
            body = batch_document(images, fields)
        except InvalidRequest as error:
            raise refused_here(error) from error
        headers = {"Idempotency-Key": str(uuid.uuid4()), "Content-Type": "application/json"}
        response = self._transport.call("POST", "/v1/batches", data=body, headers=headers)
        return BatchView.model_validate_json(response.content)

    def submit_batch_source(
        self, *, prefix: str | None = None, pattern: str = "*", manifest: str | None = None, **fields: Unpack[JobFields]
    ) -> BatchView:
        """Submit all images under an S3 prefix, or in a manifest of JSON lines in S3, as one batch, however many.

        pattern: of the names of the objects under the prefix.  Every call creates a new batch.
        Raises Refused (``invalid_spec``, ``source_not_found``, ``bucket_not_allowed``, …).
        """
        source = {"prefix": prefix, "pattern": pattern} if manifest is None else {"manifest": manifest}
        try:
            body = batch_document((), {**fields, "source": source})
        except InvalidRequest as error:
            raise refused_here(error) from error
        headers = {"Idempotency-Key": str(uuid.uuid4()), "Content-Type": "application/json"}
        response = self._transport.call("POST", "/v1/batches", data=body, headers=headers)
        return BatchView.model_validate_json(response.content)

    def cancel_batch(self, batch_id: str) -> BatchView:
        """Cancel a batch: no further jobs of it are created, and those that it has are canceled.

        Raises Conflict if all have ended.
        """
        return BatchView.model_validate_json(self._transport.call("POST", f"/v1/batches/{batch_id}/cancel").content)

    def delete_batch(self, batch_id: str) -> None:
        """Delete a batch that has ended, with its jobs and all that they wrote.  Raises Conflict before it has."""
        self._transport.call("DELETE", f"/v1/batches/{batch_id}")

    def batch_failures(self, batch_id: str) -> Iterator[BatchFailure]:
        """Yield the images of a batch that have no result, and why; pages are fetched as needed."""
        params: dict[str, str] = {}
        while True:
            response = self._transport.call("GET", f"/v1/batches/{batch_id}/failures", params=params)
            page = BatchFailures.model_validate_json(response.content)
            yield from page.failures
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def batch(self, batch_id: str) -> BatchView:
        """Return a batch: how many of its jobs are in each state, and their ids."""
        return BatchView.model_validate_json(self._transport.call("GET", f"/v1/batches/{batch_id}").content)

    def get(self, job_id: str, *, held_s: int = 0) -> JobView:
        """Return a job now, or wait up to ``held_s`` for its end."""
        headers = {"Prefer": f"wait={held_s}"} if held_s else {}
        response = self._transport.call("GET", f"/v1/jobs/{job_id}", headers=headers, held_s=held_s)
        return JobView.model_validate_json(response.content)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_progress: Callable[[JobView], object] | None = None,
    ) -> JobView:
        """Return the job once it has ended, in whatever way.

        on_progress: called with the job now, then after each change.  Raises WaitTimeout after ``timeout_s``.
        """
        deadline = _deadline(timeout_s)
        for job in self._poll(job_id, deadline, HELD_S) if on_progress is None else self._watch(job_id, deadline):
            if on_progress is not None:
                on_progress(job)
        return job

    def watch(self, job_id: str, *, timeout_s: float | None = None) -> Iterator[JobView]:
        """Yield the job as it is now, then after each change; the last one has ended.

        Raises WaitTimeout after ``timeout_s``.
        """
        yield from self._watch(job_id, _deadline(timeout_s))

    def _watch(self, job_id: str, deadline: float) -> Iterator[JobView]:
        """Follow the job's event stream; fall back to polling if it is refused or blocked on the way."""
        seen, left = "", deadline - time.monotonic()
        while left > SHORTEST_STREAM_S:
            began = time.monotonic()
            try:
                for version, job in follow(self._transport, job_id, seen, None if left == math.inf else left):
                    seen = version
                    yield job
                    if job.ended:
                        return
            except ApiError:
                break  # if more than the stream is broken, the next call reports it
            if time.monotonic() - began < SHORTEST_STREAM_S:
                break
            left = deadline - time.monotonic()
        yield from self._poll(job_id, deadline, HELD_FOR_PROGRESS_S)

    def _poll(self, job_id: str, deadline: float, held_s: int) -> Iterator[JobView]:
        """Poll the job until it has ended.  held_s: how long the API may hold each response."""
        while True:
            asked = time.monotonic()
            hold_s = int(max(0, min(held_s, deadline - asked)))
            try:
                job = self.get(job_id, held_s=hold_s)
            except ApiError as error:
                if error.code != "too_many_held":
                    raise
                job = self.get(job_id)  # the server has no room to hold this response
            yield job
            if job.ended:
                return
            if time.monotonic() >= deadline:
                raise WaitTimeout(
                    "waited_too_long",
                    f"Timed out waiting for {job_id}, which is still {job.status}. The job continues.",
                )
            # Pause between polls if the server does not hold its responses.
            time.sleep(max(0.0, (min(1.0, hold_s) or 0.2) - (time.monotonic() - asked)))

    def jobs(self, *, status: str | None = None) -> Iterator[JobView]:
        """Yield your jobs, newest first; pages are fetched as needed."""
        params = {"status": status} if status else {}
        while True:
            page = JobPage.model_validate_json(self._transport.call("GET", "/v1/jobs", params=params).content)
            yield from page.jobs
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def cancel(self, job_id: str) -> JobView:
        """Cancel a job: a queued one ends at once, a running one within seconds.

        Raises Conflict if it has already ended in another way.
        """
        try:
            response = self._transport.call("POST", f"/v1/jobs/{job_id}/cancel")
        except Conflict:
            # Already canceled, perhaps by an earlier try whose response was lost.
            job = self.get(job_id)
            if job.status == "canceled":
                return job
            raise
        return JobView.model_validate_json(response.content)

    def retry(self, job_id: str) -> JobView:
        """Queue a failed job again, under the same id.  Raises Conflict if it has not failed."""
        try:
            response = self._transport.call("POST", f"/v1/jobs/{job_id}/retry")
        except Conflict:
            # Already queued or running, perhaps by an earlier try whose response was lost.
            job = self.get(job_id)
            if not job.ended:
                return job
            raise
        return JobView.model_validate_json(response.content)

    def delete(self, job_id: str) -> None:
        """Delete an ended job and everything it wrote, but not the image that was sent with it.

        Raises Conflict if it has not ended, NotFound if it is unknown or already deleted.
        """
        self._transport.call("DELETE", f"/v1/jobs/{job_id}")

    def result(self, job_id: str) -> Manifest:
        """Return a succeeded job's manifest, with a fresh link for each file.  Raises Conflict before that."""
        return Manifest.model_validate_json(self._transport.call("GET", f"/v1/jobs/{job_id}/result").content)

    def fetch(
        self, job_id: str, folder: str | Path, *, on_file: Callable[[str, int, int], object] | None = None
    ) -> Manifest:
        """Download a result's files into a folder, each checked against the manifest, which is written last.

        on_file: called with the file's name, the number of files done, and the total.
        Raises Conflict (no result yet), DamagedFile.
        """
        manifest = self.result(job_id)
        download(self._transport, manifest, Path(folder), on_file=on_file)
        return manifest

    def file(self, job_id: str, name: str) -> bytes:
        """Return one file of a result, such as ``overlay.png``, checked against the manifest.

        Raises Conflict (no result yet), NotFound (``file_not_found``), DamagedFile.
        """
        files = {file.name: file for file in self.result(job_id).files}
        if name not in files:
            raise NotFound(
                "file_not_found", f"{job_id} wrote no {name}, but {', '.join(files) or 'no file'}.", status=404
            )
        return read_file(self._transport, files[name])

    def upload(self, photo: Path | str | bytes) -> str:
        """Upload an image to the store; return the upload id for a job to name."""
        data = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
        body = {"content_type": image_type(data), "size": len(data)}
        upload = UploadView.model_validate_json(self._transport.call("POST", "/v1/uploads", json=body).content)
        try:
            self._transport.send(requests.Request("PUT", upload.url, data=data, headers=upload.headers))
        except Refused as error:
            # The link accepts one object once: an earlier try has stored it, but its response was lost.
            if error.status != requests.codes.precondition_failed:
                raise
        return upload.upload_id

    def deliveries(self, name: str) -> tuple[DeliveryView, ...]:
        """Return the webhooks of a job or batch, oldest first, each with its delivery attempts."""
        kind = "batches" if name.startswith("batch_") else "jobs"
        response = self._transport.call("GET", f"/v1/{kind}/{name}/deliveries")
        return DeliveryList.model_validate_json(response.content).deliveries

    def delivery(self, delivery_id: str) -> DeliveryView:
        """Return one webhook with its delivery attempts."""
        return DeliveryView.model_validate_json(self._transport.call("GET", f"/v1/deliveries/{delivery_id}").content)

    def redeliver(self, delivery_id: str) -> DeliveryView:
        """Send a webhook again now, under the same id."""
        response = self._transport.call("POST", f"/v1/deliveries/{delivery_id}/redeliver")
        return DeliveryView.model_validate_json(response.content)

    def redeliver_range(
        self, since: datetime, until: datetime | None = None, *, only_failed: bool = True
    ) -> Redeliveries:
        """Send the webhooks of a time range again: those that failed, or all.

        since, until: with a time zone; ``until`` defaults to now.  Raises Refused (``invalid_range``,
        ``too_many_redeliveries``: at most 10,000 within an hour).
        """
        body = {"from": since.isoformat(), "to": until.isoformat() if until else None, "only_failed": only_failed}
        response = self._transport.call("POST", "/v1/deliveries/redeliver", json=body)
        return Redeliveries.model_validate_json(response.content)

    def ping_webhook(self, url: str | None = None, *, held_s: int = HELD_FOR_PING_S) -> PingView:
        """Have a signed test event sent to ``url``, or to your tenant's own endpoint; return the outcome.

        held_s: how long the API waits for a courier to send it; after that the ping's ``code`` is ``not_sent_yet``.
        A ping whose response is lost is sent a second time.  Raises Refused (``url_not_allowed``, …).
        """
        response = self._transport.call(
            "POST",
            "/v1/webhooks/ping",
            json={"url": url} if url is not None else {},
            headers={"Prefer": f"wait={held_s}"},
            held_s=held_s,
        )
        return PingView.model_validate_json(response.content)

    def webhook_secret(self) -> WebhookSecretView:
        """Return the secret that signs your tenant's webhooks; its ``all`` is what ``verify_webhook`` takes.

        Raises Refused (``missing_scope``): the key needs the scope ``webhooks:secret``.
        """
        return WebhookSecretView.model_validate_json(self._transport.call("GET", "/v1/webhooks/secret").content)

    def rotate_webhook_secret(self, *, overlap_s: int = 24 * 3600) -> WebhookSecretView:
        """Replace the secret that signs your webhooks; the previous one signs, too, for ``overlap_s``.

        0 ends every earlier one at once, for a secret that has leaked.  A rotation whose response is lost is repeated,
        which adds a secret that nobody needs.  Raises Conflict (``too_many_secrets``).
        """
        response = self._transport.call("POST", "/v1/webhooks/secret/rotate", json={"overlap_s": overlap_s})
        return WebhookSecretView.model_validate_json(response.content)

    def create_token(
        self,
        *,
        ttl_s: int = 600,
        image_id: str | None = None,
        upload_id: str | None = None,
        scopes: Sequence[str] | None = None,
    ) -> TokenView:
        """Return a token for a web page, which must not hold the API key; it ends after ``ttl_s``, an hour at most.

        image_id, upload_id: the only image that it is for; by default it is for all of your jobs.  scopes: some of the
        key's own; by default ``jobs:read`` and ``jobs:write``.  Raises Refused (``missing_scope``,
        ``token_not_allowed``), NotFound (``tokens_not_available``).
        """
        wanted = {"ttl_s": ttl_s, "image_id": image_id, "upload_id": upload_id, "scopes": scopes and list(scopes)}
        body = {name: value for name, value in wanted.items() if value is not None}
        return TokenView.model_validate_json(self._transport.call("POST", "/v1/tokens", json=body).content)

    def models(self) -> tuple[str, ...]:
        """Return the models that a job may name, the default first."""
        return tuple(model.name for model in self.model_views())

    def model_views(self) -> tuple[ModelView, ...]:
        """Return the models that a job may name, the default first, each with the number of its ready workers."""
        response = self._transport.call("GET", "/v1/models")
        return ModelList.model_validate_json(response.content).models

    def fleet(self, model: str | None = None) -> ModelFleet:
        """Return a model's jobs and workers, and how many workers it should have; by default of the default model.

        The key needs the scope ``fleet``.
        """
        response = self._transport.call("GET", "/v1/fleet/model", params={"name": model} if model else None)
        return ModelFleet.model_validate_json(response.content)

    def whole_fleet(self) -> FleetView:
        """Return all models' jobs and workers, and every worker.  The key needs the scope ``admin``."""
        return FleetView.model_validate_json(self._transport.call("GET", "/v1/fleet").content)


def _deadline(timeout_s: float | None) -> float:
    return math.inf if timeout_s is None else time.monotonic() + timeout_s
