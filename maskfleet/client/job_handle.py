"""What a job's handle is in both clients: the job as the server shows it, which a notebook can show, too."""

from __future__ import annotations

import html
from typing import Any, Self

from pydantic import PrivateAttr

from maskfleet.client.pictures import figure
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile
from maskfleet.jobs.schema.record import JobView


class JobHandle(JobView):
    """A job as it was when it was asked for.  It equals the same JobView; copied to another process, it is one."""

    #: Its overlay, once it is here: the bytes, and their media type.
    _picture: tuple[bytes, str] | None = PrivateAttr(None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobView) and dict(self) == dict(other)

    def __reduce__(self) -> Any:  # Any: pickle's own protocol
        return JobView.model_validate_json, (self.model_dump_json(),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:  # Any: copy's own protocol
        return self  # all of it is frozen, and its connection is shared

    def picture(self) -> tuple[bytes, str] | None:
        """Return the overlay and its media type, if it is to be had; never raises."""
        return self._picture

    def picture_html(self) -> str:
        """Return the overlay for a notebook; empty if there is none."""
        found = self.picture()
        return figure(*found, self._caption()) if found else ""

    def _caption(self) -> str:
        if self.error is not None:
            return f"{self.id}: {self.status}, {self.error.code}: {self.error.detail}"
        if self.result is None:
            return f"{self.id}: {self.status}"
        count = self.result.masks
        best = f", best predicted IoU {self.result.best_score:.3f}" if self.result.best_score is not None else ""
        return f"{self.id}: {self.status}, {count} mask{'' if count == 1 else 's'}{best}"

    def _repr_html_(self) -> str:
        """Show the job in a notebook, with its picture if it painted one."""
        return self.picture_html() or f"<p>{html.escape(self._caption())}</p>"


def overlay_of(manifest: Manifest) -> ManifestFile | None:
    """Return a result's overlay; None if it has none."""
    return next((file for file in manifest.files if file.name.startswith("overlay.")), None)


def coco_of(manifest: Manifest) -> ManifestFile | None:
    """Return a result's COCO dataset; None if it has none."""
    return next((file for file in manifest.files if file.name == "coco.json"), None)
