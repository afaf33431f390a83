"""A job in the caller's hand: wait for it, take its masks and its picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from pydantic import PrivateAttr

from maskfleet.client.errors import ApiError, JobFailed, Refused
from maskfleet.client.job_handle import JobHandle, coco_of, overlay_of
from maskfleet.client.masks import Masks
from maskfleet.client.pictures import picture_of
from maskfleet.client.submission import ExportFields, RefilterFields
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import JobView

if TYPE_CHECKING:
    from PIL.Image import Image

    from maskfleet.client.client import Client


class Job(JobHandle):
    """A job as it was when the server was asked; ``refresh`` and ``wait`` return it as it is later."""

    _client: Client = PrivateAttr()

    @classmethod
    def of(cls, view: JobView, client: Client) -> Job:
        """Return what the server showed, in this client's hand."""
        job = cls.model_construct(view.model_fields_set, **dict(view))
        job._client = client
        return job

    def refresh(self) -> Job:
        """Return the job as it is now."""
        return self._client.get(self.id)

    def wait(self, *, timeout_s: float | None = None, on_progress: Callable[[Job], object] | None = None) -> Job:
        """Return the job once it has ended, in whatever way.  See ``Client.wait``."""
        return self._client.wait(self.id, timeout_s=timeout_s, on_progress=on_progress)

    def cancel(self) -> Job:
        """Cancel the job.  See ``Client.cancel``."""
        return self._client.cancel(self.id)

    def export(
        self,
        outputs: Sequence[str] = (),
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        **fields: Unpack[ExportFields],
    ) -> Job:
        """Write its masks in further formats, once it has succeeded; return the job that does it, once that has, too.

        outputs: such as ``["svg", "geojson"]``.  wait: False waits for neither.  See ``Client.export``.
        Raises JobFailed, WaitTimeout after ``timeout_s``, and as ``Client.export``.
        """
        if not wait:
            return self._client.export(self.id, outputs, **fields)
        self._succeeded(timeout_s)
        job = self._client.export(self.id, outputs, **fields)
        return job._succeeded(timeout_s)

    def refilter(
        self,
        outputs: Sequence[str] | None = None,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        **fields: Unpack[RefilterFields],
    ) -> Job:
        """Filter its candidates with other thresholds; return the job that does it, once that has succeeded.

        It must have been sent with ``keep_candidates``.  outputs: ``["coco"]`` unless given.  wait: False does not wait
        for either job.  See ``Client.refilter``.  Raises JobFailed, WaitTimeout after ``timeout_s``, and as
        ``Client.refilter``.
        """
        if not wait:
            return self._client.refilter(self.id, outputs, **fields)
        self._succeeded(timeout_s)
        job = self._client.refilter(self.id, outputs, **fields)
        return job._succeeded(timeout_s)

    def fetch(self, folder: str | Path, *, on_file: Callable[[str, int, int], object] | None = None) -> Manifest:
        """Download its files into a folder.  See ``Client.fetch``."""
        return self._client.fetch(self.id, folder, on_file=on_file)

    def masks(self, *, timeout_s: float | None = None) -> Masks:
        """Return its masks, once it has succeeded; their pixels are decoded when they are asked for.

        They are those that came inline, or else those of its ``coco.json``.  Raises JobFailed, WaitTimeout, and
        Refused (``masks_not_written``) if the job was told to write neither.
        """
        job = self._succeeded(timeout_s)
        if job.inline is not None:
            return Masks.of_inline(job, job.inline)
        manifest = self._client.result(job.id)
        if manifest.inline is not None:
            return Masks.of_inline(job, manifest.inline)
        coco = coco_of(manifest)
        if coco is None:
            raise Refused(
                "masks_not_written",
                f'{job.id} has neither coco.json nor masks inline. Add "coco" to its outputs, or inline="rle".',
            )
        return Masks.of_coco(job, self._client.read(coco))

    def overlay(self, *, timeout_s: float | None = None) -> Image:
        """Return the picture with its masks in colour, once it has succeeded.

        Raises JobFailed, WaitTimeout, MissingPackage without Pillow, and Refused (``overlay_not_written``) if the job
        was not told to paint one.
        """
        job = self._succeeded(timeout_s)
        return picture_of(job._load_picture())

    def _succeeded(self, timeout_s: float | None) -> Job:
        job = self if self.ended else self.wait(timeout_s=timeout_s)
        if job.status != "succeeded":
            raise JobFailed(job)
        return job

    def _load_picture(self) -> bytes:
        if self._picture is None:
            file = overlay_of(self._client.result(self.id))
            if file is None:
                raise Refused("overlay_not_written", f'{self.id} has no overlay. Add "overlay" to its outputs.')
            data = self._client.read(file)
            self._picture = (data, file.content_type)
        return self._picture[0]

    def picture(self) -> tuple[bytes, str] | None:
        """Return the overlay and its media type, if it is to be had; never raises."""
        if self._picture is None and self.status == "succeeded":
            try:
                self._load_picture()
            except ApiError:
                return None
        return self._picture
