"""``maskfleet segment``: segment one photo in this process, without a server."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click
from rich.progress import TaskID

from maskfleet.cli.spec_options import build_spec, spec_options
from maskfleet.cli.terminal import progress_bars, reporting_errors
from maskfleet.data import DEMO_MODEL
from maskfleet.jobs.prompt_checks import fit_prompts
from maskfleet.jobs.schema.spec import ImageSource, Output
from maskfleet.jobs.status import Stage

if TYPE_CHECKING:
    from maskfleet.worker.segment import Segmentation


@click.command("segment")
@click.argument("photo", type=click.Path(exists=True, dir_okay=False, path_type=Path))
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
def segment_command(photo: Path, model: str | None, out: Path, device: str, **options: object) -> None:
    """Segment PHOTO in this process, without a server, and write masks and scores to a folder.

    Jobs and output files are the same as in the service: always coco.json, and whatever --outputs names.
    """
    with reporting_errors():
        # The file itself is read below; a spec has no place for a path.
        spec = build_spec(image=ImageSource(base64=""), **options)  # type: ignore[arg-type]  # click's options, by name
        spec = spec.model_copy(update={"outputs": tuple(dict.fromkeys((Output.COCO, *spec.outputs)))})
        started = time.perf_counter()
        # Imported late: printing the help needs none of the worker, and torch takes seconds to import, so the photo
        # and the prompts are checked first.
        from maskfleet.jobs.settings import SharedSettings
        from maskfleet.worker.image.decode import decode_photo

        settings = SharedSettings()
        picture = decode_photo(photo.read_bytes(), settings.max_image_pixels)
        fit_prompts(spec.prompts, picture.size_wh)

        from maskfleet.worker.node.device import OPENMP_PASSIVE_WAIT

        for name, value in OPENMP_PASSIVE_WAIT.items():
            os.environ.setdefault(name, value)
        from maskfleet.worker.output.formats import make_artifacts
        from maskfleet.worker.sam.model import load_model
        from maskfleet.worker.segment import segment

        set_model = settings.model if "model" in settings.model_fields_set else str(DEMO_MODEL)
        network = load_model(model or set_model, device)
        with _BarAfterASecond() as watch:
            result = segment(picture, spec, network, watch)
        files = 0
        for artifact in make_artifacts(picture, spec, result, photo.name):
            path = out / artifact.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(artifact.data)
            files += 1
        click.echo(_summary(result, files, out, time.perf_counter() - started))


class _BarAfterASecond:
    """Shows progress on stderr once the batches have taken a second; a quick job prints none."""

    def __init__(self) -> None:
        self._bars = progress_bars()
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
            if time.monotonic() - self._since < 1:
                return
            self._bars.start()
            self._task = self._bars.add_task("Segmenting", total=total)
        self._bars.update(self._task, completed=done, description=f"Segmenting, {masks} masks so far")


def _summary(result: Segmentation, files: int, out: Path, seconds: float) -> str:
    width, height = result.size_wh
    count = len(result.masks)
    scores = f", predicted IoU up to {max(mask.predicted_iou for mask in result.masks):.3f}" if count else ""
    return (
        f"{count} mask{'' if count == 1 else 's'} on {width}×{height} pixels{scores}\n"
        f"{files} file{'' if files == 1 else 's'} in {out}, {seconds:.1f} s"
    )
