"""``maskfleet segment``: segment photos in this process, without a server."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click
from rich.progress import TaskID

from maskfleet.cli.many import Did, Run, Task
from maskfleet.cli.photos import WORDS, NamedPhoto, find_photos, photos_argument
from maskfleet.cli.server import data_option
from maskfleet.cli.spec_options import build_spec, digest_of, option_of, spec_options
from maskfleet.cli.terminal import counted, demo_note, progress_bars, reporting_errors, tell
from maskfleet.client.errors import Unavailable
from maskfleet.client.submission import source_of
from maskfleet.data import DEMO_MODEL
from maskfleet.jobs.errors import AttemptFailed
from maskfleet.jobs.prompt_checks import fit_prompts
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import ImageSource, Output
from maskfleet.jobs.status import Stage

if TYPE_CHECKING:
    from maskfleet.jobs.settings import WorkerSettings
    from maskfleet.worker.sam.model import SegmentationModel
    from maskfleet.worker.segmentation import Segmentation


@click.command(
    "segment",
    help=f"""Segment each PHOTO in this process, without a server, and write masks and scores to a folder.

    PHOTO is {WORDS}.

    The files are those of the service: always coco.json, a picture unless --outputs says otherwise, and whatever else
    it names. Many photos get a folder each and one coco.json for all; the same command again goes on where it stopped,
    and tries again what failed. The exit status is 0 if all were segmented, 1 if some failed, 2 if nothing was tried.
    """,
)
@photos_argument
@spec_options
@click.option("--model", metavar="DIR_OR_ID", help="The checkpoint: a folder or a hub id.  [default: the bundled demo]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("masks-out"),
    show_default=True,
    help="Where to write the files.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per photo.")
@data_option
@click.pass_context
def segment_command(
    context: click.Context,
    /,
    words: tuple[str, ...],
    model: str | None,
    out: Path,
    device: str,
    as_json: bool,
    **options: object,
) -> None:
    with reporting_errors(option_of):
        # The photos themselves are read below; a spec has no place for a path.
        spec = build_spec(image=ImageSource(base64=""), **options)  # type: ignore[arg-type]  # click's options, by name
        spec = spec.model_copy(update={"outputs": tuple(dict.fromkeys((Output.COCO, *spec.outputs)))})
        found = find_photos(words, leave_out=out)
        segmenter = Segmenter(spec, model, device)
        if found.are_many:
            run = Run(out, digest_of(spec, segmenter.model_name), segmenter.do, as_json=as_json)
            context.exit(run.do(found.photos))
        started = time.perf_counter()
        (photo,) = found.photos
        with _BarAfterASecond() as watch:
            made = segmenter.segment(photo, out, watch)
        seconds = time.perf_counter() - started
        click.echo(json.dumps(made.document(photo, out, seconds)) if as_json else made.summary(out, seconds))


@dataclass(frozen=True, slots=True)
class _Made:
    """What was made of one photo.  files: their names, below the folder."""

    result: Segmentation
    files: tuple[str, ...]

    @property
    def best_score(self) -> float | None:
        return max((mask.predicted_iou for mask in self.result.masks), default=None)

    def summary(self, out: Path, seconds: float) -> str:
        width, height = self.result.size_wh
        best = "" if self.best_score is None else f", predicted IoU up to {self.best_score:.3f}"
        picture = next((f"; see {out / name}" for name in self.files if name.startswith("overlay.")), "")
        return (
            f"{counted(len(self.result.masks), 'mask')} on {width}×{height} pixels{best}\n"
            f"{counted(len(self.files), 'file')} in {out}, {seconds:.1f} s{picture}"
        )

    def document(self, photo: NamedPhoto, out: Path, seconds: float) -> dict[str, object]:
        width, height = self.result.size_wh
        return {
            "photo": photo.name,
            "status": "succeeded",
            "masks": len(self.result.masks),
            "best_score": self.best_score,
            "width": width,
            "height": height,
            "folder": str(out),
            "files": list(self.files),
            "seconds": round(seconds, 3),
        }


class Segmenter:
    """Segments photos with one model, which is loaded for the first photo whose prompts fit."""

    def __init__(self, spec: Spec, model: str | None, device: str) -> None:
        # Imported late: printing the help needs none of the worker's settings.
        from maskfleet.cli.operators import with_local_stack
        from maskfleet.jobs.settings import WorkerSettings

        self._settings = with_local_stack(WorkerSettings())
        chosen = model or (self._settings.model if "model" in self._settings.model_fields_set else "")
        self.model_name = chosen or str(DEMO_MODEL)
        self._is_demo = not chosen
        self._spec = spec
        self._device = device
        self._network: SegmentationModel | None = None

    def do(self, task: Task) -> Did:
        """Segment one of many photos."""
        with _BarAfterASecond(hidden=True) as watch:
            made = self.segment(task.photo, task.folder, watch)
        return Did(len(made.result.masks), made.best_score)

    def segment(self, photo: NamedPhoto, out: Path, watch: _BarAfterASecond) -> _Made:
        """Segment a photo and write the files.  Raises JobError, Unavailable, OSError.

        The photo and the prompts are checked before torch is imported, which takes seconds.
        """
        from maskfleet.worker.image.decode import decode_photo

        picture = decode_photo(_read(photo, self._settings), self._settings.max_image_pixels)
        fit_prompts(self._spec.prompts, picture.size_wh)
        network = self._loaded()
        from maskfleet.worker.output.formats import make_artifacts
        from maskfleet.worker.segment import segment

        result = segment(picture, self._spec, network, watch)
        files = []
        name = photo.path.name if photo.path else photo.folder.name
        for artifact in make_artifacts(picture, self._spec, result, name):
            path = out / artifact.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(artifact.data)
            files.append(artifact.name)
        return _Made(result, tuple(files))

    def _loaded(self) -> SegmentationModel:
        if self._network is None:
            if self._is_demo:
                tell(demo_note("--model facebook/sam-vit-base, a hub id or a folder"), err=True)
            from maskfleet.worker.node.device import OPENMP_PASSIVE_WAIT
            from maskfleet.worker.node.importing import uncollected

            for name, value in OPENMP_PASSIVE_WAIT.items():
                os.environ.setdefault(name, value)
            with uncollected():
                from maskfleet.worker.sam.model import load_model

            try:
                self._network = load_model(self.model_name, self._device)
            except AttemptFailed as error:  # as it would for every further photo
                raise Unavailable(error.code, error.detail) from error
        return self._network


class _BarAfterASecond:
    """Shows progress on stderr once the batches have taken a second; a quick job prints none.

    hidden: never, beside the bar of a run over many photos.
    """

    def __init__(self, *, hidden: bool = False) -> None:
        self._bars = progress_bars()
        self._hidden = hidden
        self._task: TaskID | None = None
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage(self, stage: Stage) -> None:
        pass

    def batch(self, done: int, total: int, masks: int) -> None:
        if self._task is None:
            if self._hidden or time.monotonic() - self._since < 1:
                return
            self._bars.start()
            self._task = self._bars.add_task("Segmenting", total=total)
        self._bars.update(self._task, completed=done, description=f"Segmenting, {counted(masks, 'mask')} so far")


def _read(photo: NamedPhoto, settings: WorkerSettings) -> bytes:
    """Return a photo's bytes; those of an address as a worker fetches them, with the user's own rights."""
    if photo.data is not None:
        return photo.data
    if photo.path is not None:
        return photo.path.read_bytes()
    from requests import Session

    from maskfleet.jobs.buckets import AllowedBucket
    from maskfleet.jobs.storage import Store, split_s3_uri
    from maskfleet.worker.sources import fetch_image

    source, _ = source_of(photo.name)
    buckets = (AllowedBucket("", split_s3_uri(source.s3_uri)[0], ""),) if source.s3_uri else ()
    settings = settings.model_copy(update={"allowed_buckets": buckets, "bucket": ""})
    return fetch_image(source, "", Store(settings), Session(), settings).data
