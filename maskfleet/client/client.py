"""A server's jobs, from Python.

from maskfleet import Client

with Client("http://127.0.0.1:8000", "mf_…") as client:
    masks = client.segment("examples/coins.png", box=(304, 14, 366, 73))
    print(masks.scores, masks[0].array().shape)
    masks.job.fetch("masks")

``asynchronous/client.py`` is made from this file, and its neighbours from ``job``, ``events`` and ``download``:
``make async-client``.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Literal, Self, Unpack

from maskfleet.client.download import download, read_file
from maskfleet.client.errors import ApiError, Conflict, NotFound, Refused, WaitTimeout, refused_here
from maskfleet.client.events import follow
from maskfleet.client.files import Expected, is_fetched
from maskfleet.client.job import Job
from maskfleet.client.masks import Masks
from maskfleet.client.retries import MAX_TRIES, OnRetry
from maskfleet.client.submission import (
    ExportFields,
    JobFields,
    JobOptionFields,
    Photo,
    RefilterFields,
    batch_document,
    bytes_of,
    complete,
    digest_of,
    document_of,
    embed_request,
    export_request,
    image_type,
    known_image,
    one_object,
    refilter_request,
    source_of,
)
from maskfleet.client.transport import Transport
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
from maskfleet.jobs.schema.batch import BatchFailure, BatchFailures, BatchStatus, BatchView
from maskfleet.jobs.schema.delivery import DeliveryView
from maskfleet.jobs.schema.fleet import FleetView, ModelFleet
from maskfleet.jobs.schema.image import ImageView
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile
from maskfleet.jobs.schema.record import AnySpec, JobView
from maskfleet.jobs.schema.spec import IMAGE_COMES_BESIDE, EmbedRequest, ImageSource
from maskfleet.jobs.status import Status

#: Photos larger than this are uploaded straight to the store, not through the API.
MULTIPART_BYTES = 8 * 2**20
#: How long the API may hold a response: long if only the end matters, short to see progress.
HELD_S, HELD_FOR_PROGRESS_S = 20, 1
#: A ping takes a courier's tick and the receiver's time to respond, 15 s by default.
HELD_FOR_PING_S = 20
#: Photos whose ids a client remembers.
MOST_REMEMBERED = 1000
#: A batch is asked for this often at first, then less and less.
FIRST_LOOK_S, LAST_LOOK_S, LOOK_GROWTH = 0.2, 2.0, 1.5
#: The store has an object under that name already.  Source: RFC 9110, section 15.5.13.
PRECONDITION_FAILED = 412
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
        on_retry: OnRetry | None = None,
    ) -> None:
        """on_retry: called with a sentence before each wait for another try.

        Raises Refused (``invalid_api_url``, ``invalid_api_key``).
        """
        self._transport = Transport(api_url, api_key, max_tries=max_tries, on_retry=on_retry)
        #: The ids of photos that ``segment`` made known, by model and content.
        self._remembered: dict[tuple[str | None, str], str] = {}

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
    ) -> Job:
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
        return self._job(self._send("/v1/jobs", spec, data, headers, held_s=held_s))

    def segment(
        self,
        photo: Photo | None = None,
        *,
        points: Sequence[tuple[float, float]] | None = None,
        labels: Sequence[Literal[0, 1]] | None = None,
        box: tuple[float, float, float, float] | None = None,
        image_id: str | None = None,
        remember: bool = False,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Masks:
        """Return the masks of a photo: of everything in it, or of one object that points or a box show.

        points: x, y on the object, or where ``labels`` is 0, off it.  box: x_min, y_min, x_max, y_max.  For several
        objects, give ``prompts``; these and all other fields are those of ``submit``.  The masks come inline, and the
        job also writes ``coco`` and ``overlay``, unless fields say otherwise.
        remember: send the photo once; this client's later calls for the same picture name the image that the service
        has, and are fast.
        Raises Refused (``invalid_spec``, …), JobFailed, WaitTimeout after ``timeout_s``, OSError when the photo cannot
        be read.
        """
        try:
            fields = one_object(points, labels, box, fields)
        except InvalidRequest as error:
            raise refused_here(error) from error
        if remember and photo is not None and image_id is None:
            job = self._submit_known(photo, fields, idempotency_key, _held(timeout_s))
        else:
            job = self.submit(
                photo=photo, image_id=image_id, idempotency_key=idempotency_key, held_s=_held(timeout_s), **fields
            )
        return job.masks(timeout_s=timeout_s)

    def _submit_known(self, photo: Photo, fields: JobFields, idempotency_key: str | None, held_s: int) -> Job:
        """Submit a job on a photo that is made known first, and again if the service has forgotten it."""
        model = fields.get("model")
        if hasattr(photo, "read"):  # an open file, which can be read once
            photo = bytes_of(photo)
        known = model, digest_of(photo)
        options: JobOptionFields = {"model": model} if model else {}
        while True:
            earlier = self._remembered.get(known)
            image_id = earlier or self.embed_image(photo, **options).image_id
            self._remembered[known] = image_id
            if len(self._remembered) > MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            try:
                return self.submit(image_id=image_id, idempotency_key=idempotency_key, held_s=held_s, **fields)
            except Refused as error:
                if error.code != "image_not_known" or earlier is None:
                    raise
                self._remembered.pop(known, None)

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
        return ImageView.model_validate_json(response)

    def image(self, image_id: str, *, held_s: int = 0) -> ImageView:
        """Return an image that was made known, now, or once it is encoded, if that is within ``held_s``."""
        headers = {"Prefer": f"wait={held_s}"} if held_s else {}
        response = self._transport.call("GET", f"/v1/images/{image_id}", headers=headers, held_s=held_s)
        return ImageView.model_validate_json(response)

    def delete_image(self, image_id: str) -> None:
        """Delete an image's embeddings and forget its id; what was uploaded stays.

        Raises Conflict while it is being encoded, NotFound if it is unknown or already deleted.
        """
        self._transport.call("DELETE", f"/v1/images/{image_id}")

    def export(
        self,
        job_id: str,
        outputs: Sequence[str] = (),
        *,
        idempotency_key: str | None = None,
        held_s: int = 0,
        **fields: Unpack[ExportFields],
    ) -> Job:
        """Write a job's masks in further formats: a new job, which needs no GPU.

        outputs: such as ``["svg", "geojson"]``; all but ``logits``.  held_s: as for ``submit``.
        Raises Refused (``invalid_spec``, …), NotFound, Conflict (``masks_not_kept``, …).
        """
        try:
            body = export_request(outputs, fields)
        except InvalidRequest as error:
            raise refused_here(error) from error
        return self._derive(f"/v1/jobs/{job_id}/export", body, idempotency_key, held_s)

    def refilter(
        self,
        job_id: str,
        outputs: Sequence[str] | None = None,
        *,
        idempotency_key: str | None = None,
        held_s: int = 0,
        **fields: Unpack[RefilterFields],
    ) -> Job:
        """Filter a job's candidates with other thresholds: a new job, which needs no GPU.

        The job must have been sent with ``keep_candidates``.  outputs: ``["coco"]`` unless given; all but ``logits``.
        held_s: as for ``submit``.  fields: the thresholds that are to be others, and those of ``export``.
        Raises Refused (``threshold_not_kept``, …), NotFound, Conflict (``candidates_not_kept``, …).
        """
        try:
            body = refilter_request(outputs, fields)
        except InvalidRequest as error:
            raise refused_here(error) from error
        return self._derive(f"/v1/jobs/{job_id}/refilter", body, idempotency_key, held_s)

    def _derive(self, path: str, body: bytes, idempotency_key: str | None, held_s: int) -> Job:
        """Make a job on what an earlier one wrote."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._job(self._post(path, headers, held_s, document=body))

    def _job(self, body: bytes) -> Job:
        return Job.of(JobView.model_validate_json(body), self)

    def _send(
        self, path: str, spec: AnySpec | EmbedRequest, data: bytes | None, headers: dict[str, str], *, held_s: int = 0
    ) -> bytes:
        """Send a job, with its image's bytes if there are any: beside it, or uploaded first."""
        if data is not None and len(data) > MULTIPART_BYTES:
            image = spec.image.model_copy(update={"upload_id": self.upload(data)})
            spec = spec.model_copy(update={"image": image})
            data = None
        if data is None:
            return self._post(path, headers, held_s, document=document_of(spec, with_image=True))
        form = {
            "job": ("job.json", document_of(spec, with_image=False), "application/json"),
            "image": (spec.image.file_name or "image", data, image_type(data)),
        }
        return self._post(path, headers, held_s, form=form)

    def _post(
        self,
        path: str,
        headers: dict[str, str],
        held_s: int,
        *,
        document: bytes | None = None,
        form: dict[str, tuple[str, bytes, str]] | None = None,
    ) -> bytes:
        if document is not None:
            headers = {**headers, "Content-Type": "application/json"}
        held = headers | ({"Prefer": f"wait={held_s}"} if held_s else {})
        try:
            return self._transport.call("POST", path, data=document, files=form, headers=held, held_s=held_s)
        except ApiError as error:
            if error.code != "too_many_held":
                raise
            # The server has no room to hold this response.
            return self._transport.call("POST", path, data=document, files=form, headers=headers)

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
        return BatchView.model_validate_json(response)

    def submit_batch_source(
        self,
        *,
        prefix: str | None = None,
        pattern: str = "*",
        manifest: str | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> BatchView:
        """Submit all images under an S3 prefix, or in a manifest of JSON lines in S3, as one batch, however many.

        pattern: of the names of the objects under the prefix.  idempotency_key: as in ``submit``.
        Raises Refused (``invalid_spec``, ``source_not_found``, ``bucket_not_allowed``, …).
        """
        source = {"prefix": prefix, "pattern": pattern} if manifest is None else {"manifest": manifest}
        try:
            body = batch_document((), {**fields, "source": source})
        except InvalidRequest as error:
            raise refused_here(error) from error
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4()), "Content-Type": "application/json"}
        response = self._transport.call("POST", "/v1/batches", data=body, headers=headers)
        return BatchView.model_validate_json(response)

    def cancel_batch(self, batch_id: str) -> BatchView:
        """Cancel a batch: no further jobs of it are created, and those that it has are canceled.

        Raises Conflict if all have ended, none of them canceled.
        """
        try:
            response = self._transport.call("POST", f"/v1/batches/{batch_id}/cancel")
        except Conflict:
            # Already canceled, perhaps by an earlier try whose response was lost.
            batch = self.batch(batch_id)
            if batch.counts.canceled:
                return batch
            raise
        return BatchView.model_validate_json(response)

    def delete_batch(self, batch_id: str) -> None:
        """Delete a batch that has ended, with its jobs and all that they wrote.  Raises Conflict before it has."""
        self._transport.call("DELETE", f"/v1/batches/{batch_id}")

    def batch_failures(self, batch_id: str) -> Iterator[BatchFailure]:
        """Yield the images of a batch that have no result, and why; pages are fetched as needed."""
        params: dict[str, str] = {}
        while True:
            response = self._transport.call("GET", f"/v1/batches/{batch_id}/failures", params=params)
            page = BatchFailures.model_validate_json(response)
            yield from page.failures
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def batch(self, batch_id: str) -> BatchView:
        """Return a batch: how many of its jobs are in each state, and their ids."""
        return BatchView.model_validate_json(self._transport.call("GET", f"/v1/batches/{batch_id}"))

    def wait_batch(
        self,
        batch_id: str,
        *,
        timeout_s: float | None = None,
        on_progress: Callable[[BatchView], object] | None = None,
    ) -> BatchView:
        """Return the batch once all of its jobs have ended, in whatever way.

        on_progress: called with the batch now, then after each change.  Raises WaitTimeout after ``timeout_s``.
        """
        deadline, pause_s = _deadline(timeout_s), FIRST_LOOK_S
        seen: BatchView | None = None
        while True:
            batch = self.batch(batch_id)
            if on_progress is not None and batch != seen:
                on_progress(batch)
            seen = batch
            if batch.status == BatchStatus.COMPLETED:
                return batch
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise WaitTimeout(
                    "waited_too_long",
                    f"Timed out waiting for {batch_id}: {batch.done} of {batch.total} jobs have ended. It continues.",
                )
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * LOOK_GROWTH, LAST_LOOK_S)

    def fetch_batch(
        self,
        batch_id: str,
        folder: str | Path,
        *,
        on_job: Callable[[Job, int, int], object] | None = None,
        only: Collection[str] | None = None,
    ) -> tuple[Job, ...]:
        """Download the results of a batch, each into a folder named by its number: ``0000``, ``0001``, …

        Returns its jobs, in the order of the images: one that did not succeed has no folder, and its ``error`` says
        why.  Results that are there already are not fetched again, so a repeated call goes on where the first ended.
        on_job: called with each job, the number of jobs done, and the total.  Jobs that were deleted are left out.
        Of a batch from a prefix or a manifest, whose jobs are forgotten soon after their end, it is the files that were
        made of all results: ``coco.json``, and ``outcomes.jsonl`` with a line for each image; no job is returned.
        only: the names of those to be fetched.  Raises DamagedFile.
        """
        batch = self.batch(batch_id)
        if batch.source is not None:
            for file in batch.files:
                if only is not None and file.name not in only:
                    continue
                link = self._transport.location(f"/v1/batches/{batch_id}/files/{file.name}")
                read_file(self._transport, Expected(file.name, link, file.size), Path(folder))
            return ()
        job_ids = batch.job_ids
        jobs: list[Job] = []
        for number, job_id in enumerate(job_ids):
            try:
                job = self.get(job_id)
            except NotFound:
                continue
            jobs.append(job)
            into = Path(folder) / f"{number:04d}"
            if job.status == Status.SUCCEEDED and not is_fetched(job.id, into):
                self.fetch(job.id, into)
            if on_job is not None:
                on_job(job, number + 1, len(job_ids))
        return tuple(jobs)

    def get(self, job_id: str, *, held_s: int = 0) -> Job:
        """Return a job now, or wait up to ``held_s`` for its end."""
        headers = {"Prefer": f"wait={held_s}"} if held_s else {}
        response = self._transport.call("GET", f"/v1/jobs/{job_id}", headers=headers, held_s=held_s)
        return self._job(response)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_progress: Callable[[Job], object] | None = None,
    ) -> Job:
        """Return the job once it has ended, in whatever way.

        on_progress: called with the job now, then after each change.  Raises WaitTimeout after ``timeout_s``.
        """
        deadline = _deadline(timeout_s)
        jobs = self._poll(job_id, deadline, HELD_S) if on_progress is None else self._watch(job_id, deadline)
        for job in jobs:
            if on_progress is not None:
                on_progress(job)
        return job

    def watch(self, job_id: str, *, timeout_s: float | None = None) -> Iterator[Job]:
        """Yield the job as it is now, then after each change; the last one has ended.

        Raises WaitTimeout after ``timeout_s``.
        """
        yield from self._watch(job_id, _deadline(timeout_s))

    def _watch(self, job_id: str, deadline: float) -> Iterator[Job]:
        """Follow the job's event stream; fall back to polling if it is refused or blocked on the way."""
        seen, left = "", deadline - time.monotonic()
        while left > SHORTEST_STREAM_S:
            began = time.monotonic()
            try:
                with closing(follow(self._transport, job_id, seen, None if left == math.inf else left)) as changes:
                    for version, view in changes:
                        seen = version
                        yield Job.of(view, self)
                        if view.ended:
                            return
            except ApiError:
                break  # if more than the stream is broken, the next call reports it
            if time.monotonic() - began < SHORTEST_STREAM_S:
                break
            left = deadline - time.monotonic()
        yield from self._poll(job_id, deadline, HELD_FOR_PROGRESS_S)

    def _poll(self, job_id: str, deadline: float, held_s: int) -> Iterator[Job]:
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

    def jobs(self, *, status: str | None = None) -> Iterator[Job]:
        """Yield your jobs, newest first; pages are fetched as needed."""
        params = {"status": status} if status else {}
        while True:
            page = JobPage.model_validate_json(self._transport.call("GET", "/v1/jobs", params=params))
            for view in page.jobs:
                yield Job.of(view, self)
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def cancel(self, job_id: str) -> Job:
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
        return self._job(response)

    def retry(self, job_id: str) -> Job:
        """Queue a failed job again, under the same id.  Raises Conflict if it has not failed."""
        try:
            response = self._transport.call("POST", f"/v1/jobs/{job_id}/retry")
        except Conflict:
            # Already queued or running, perhaps by an earlier try whose response was lost.
            job = self.get(job_id)
            if not job.ended:
                return job
            raise
        return self._job(response)

    def delete(self, job_id: str) -> None:
        """Delete an ended job and everything it wrote, but not the image that was sent with it.

        Raises Conflict if it has not ended, NotFound if it is unknown or already deleted.
        """
        self._transport.call("DELETE", f"/v1/jobs/{job_id}")

    def result(self, job_id: str) -> Manifest:
        """Return a succeeded job's manifest, with a fresh link for each file.  Raises Conflict before that."""
        return Manifest.model_validate_json(self._transport.call("GET", f"/v1/jobs/{job_id}/result"))

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
        return self.read(files[name])

    def read(self, file: ManifestFile) -> bytes:
        """Return the bytes of one of a result's files, checked against the manifest.  Raises DamagedFile."""
        return read_file(self._transport, Expected.of(file))

    def upload(self, photo: Photo) -> str:
        """Upload an image to the store; return the upload id for a job to name."""
        data = bytes_of(photo)
        body = {"content_type": image_type(data), "size": len(data)}
        upload = UploadView.model_validate_json(self._transport.call("POST", "/v1/uploads", json=body))
        try:
            self._transport.put(upload.url, data, upload.headers)
        except Refused as error:
            # The link accepts one object once: an earlier try has stored it, but its response was lost.
            if error.status != PRECONDITION_FAILED:
                raise
        return upload.upload_id

    def deliveries(self, name: str) -> tuple[DeliveryView, ...]:
        """Return the webhooks of a job or batch, oldest first, each with its delivery attempts."""
        kind = "batches" if name.startswith("batch_") else "jobs"
        response = self._transport.call("GET", f"/v1/{kind}/{name}/deliveries")
        return DeliveryList.model_validate_json(response).deliveries

    def delivery(self, delivery_id: str) -> DeliveryView:
        """Return one webhook with its delivery attempts."""
        return DeliveryView.model_validate_json(self._transport.call("GET", f"/v1/deliveries/{delivery_id}"))

    def redeliver(self, delivery_id: str) -> DeliveryView:
        """Send a webhook again now, under the same id."""
        response = self._transport.call("POST", f"/v1/deliveries/{delivery_id}/redeliver")
        return DeliveryView.model_validate_json(response)

    def redeliver_range(
        self, since: datetime, until: datetime | None = None, *, only_failed: bool = True
    ) -> Redeliveries:
        """Send the webhooks of a time range again: those that failed, or all.

        since, until: with a time zone; ``until`` defaults to now.  Raises Refused (``invalid_range``,
        ``too_many_redeliveries``: at most 10,000 within an hour).
        """
        body = {"from": since.isoformat(), "to": until.isoformat() if until else None, "only_failed": only_failed}
        response = self._transport.call("POST", "/v1/deliveries/redeliver", json=body)
        return Redeliveries.model_validate_json(response)

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
        return PingView.model_validate_json(response)

    def webhook_secret(self) -> WebhookSecretView:
        """Return the secret that signs your tenant's webhooks; its ``all`` is what ``verify_webhook`` takes.

        Raises Refused (``missing_scope``): the key needs the scope ``webhooks:secret``.
        """
        return WebhookSecretView.model_validate_json(self._transport.call("GET", "/v1/webhooks/secret"))

    def rotate_webhook_secret(self, *, overlap_s: int = 24 * 3600) -> WebhookSecretView:
        """Replace the secret that signs your webhooks; the previous one signs, too, for ``overlap_s``.

        0 ends every earlier one at once, for a secret that has leaked.  A rotation whose response is lost is repeated,
        which adds a secret that nobody needs.  Raises Conflict (``too_many_secrets``).
        """
        response = self._transport.call("POST", "/v1/webhooks/secret/rotate", json={"overlap_s": overlap_s})
        return WebhookSecretView.model_validate_json(response)

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
        return TokenView.model_validate_json(self._transport.call("POST", "/v1/tokens", json=body))

    def models(self) -> tuple[str, ...]:
        """Return the models that a job may name, the default first."""
        return tuple(model.name for model in self.model_views())

    def model_views(self) -> tuple[ModelView, ...]:
        """Return the models that a job may name, the default first, each with the number of its ready workers."""
        response = self._transport.call("GET", "/v1/models")
        return ModelList.model_validate_json(response).models

    def fleet(self, model: str | None = None) -> ModelFleet:
        """Return a model's jobs and workers, and how many workers it should have; by default of the default model.

        The key needs the scope ``fleet``.
        """
        response = self._transport.call("GET", "/v1/fleet/model", params={"name": model} if model else None)
        return ModelFleet.model_validate_json(response)

    def whole_fleet(self) -> FleetView:
        """Return all models' jobs and workers, and every worker.  The key needs the scope ``admin``."""
        return FleetView.model_validate_json(self._transport.call("GET", "/v1/fleet"))


def _deadline(timeout_s: float | None) -> float:
    return math.inf if timeout_s is None else time.monotonic() + timeout_s


def _held(timeout_s: float | None) -> int:
    """Return how long the API may hold the response to a job's submission."""
    return HELD_S if timeout_s is None else int(max(0, min(HELD_S, timeout_s)))
