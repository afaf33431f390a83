"""``maskfleet raster``: a raster larger than a job, in tiles, and the objects of all tiles on the map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from maskfleet.cli.batch import PARALLEL, bulk_priority_option
from maskfleet.cli.extras import require
from maskfleet.cli.many import Did, Run, Task, Work
from maskfleet.cli.photos import NamedPhoto
from maskfleet.cli.progress_file import Entry
from maskfleet.cli.server import say, server_of, server_options
from maskfleet.cli.spec_options import build_spec, digest_of, everything_options, option_of
from maskfleet.cli.terminal import counted, reporting_errors, tell
from maskfleet.cli.through_server import Seldom, ServerWork, note_model
from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import IMAGE_COMES_BESIDE, EverythingJob
from maskfleet.raster.layout import EDGE, Layout

if TYPE_CHECKING:
    from maskfleet.raster.seams import TileMask
    from maskfleet.raster.source import Raster

#: SAM's own resolution: a larger tile would be scaled down.
TILE, OVERLAP = 1024, 256
#: Specks beside an object, of 10 by 10 pixels.
MIN_PIECE = 100
_TILES = "tiles"


@click.command(
    "raster",
    help="""Segment everything on a RASTER of any size, such as a GeoTIFF: cut it into tiles that overlap, make a job of
    each through a server (or with --here in this process), and join the masks at the seams.

    Writes outlines.geojson (polygons with holes, in the raster's own map coordinates) and label_map.tif (the number of
    the object at each pixel) to a folder. A raster without a place on the map is done in pixels. Memory is that of some
    tiles. The same command again goes on where it stopped, and tries again what failed.

    The exit status is 0 if all tiles were segmented, 1 if some failed or the server is down, 2 if nothing was tried or
    the key is not accepted, 130 after Ctrl-C.
    """,
)
@click.argument("path", metavar="RASTER", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("raster-out"),
    show_default=True,
    help="Where to write the files, and the tiles' results.",
)
@click.option(
    "--tile", type=click.IntRange(128, 8192), default=TILE, show_default=True, help="Pixels along a tile's side."
)
@click.option(
    "--overlap",
    type=click.IntRange(0),
    default=OVERLAP,
    show_default=True,
    help="Objects up to so many pixels across are whole in at least one tile.",
)
@click.option(
    "--bands", metavar="N[,N,N]", help="The bands to show, from 1.  [default: the colours, or the first three]"
)
@click.option(
    "--min-piece",
    type=click.IntRange(0),
    default=MIN_PIECE,
    show_default=True,
    help="Drop pieces of a mask that have fewer pixels.",
)
@everything_options
@click.option("--model", help="One of the server's models; with --here a folder or a hub id.  [default: the first]")
@bulk_priority_option
@click.option(
    "--parallel", type=click.IntRange(1, 64), default=PARALLEL, show_default=True, help="Tiles under way at once."
)
@click.option("--here", is_flag=True, help="Segment in this process, without a server.")
@click.option("--device", default="cpu", show_default=True, help="With --here: cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per tile, and one for the raster.")
@server_options
@click.pass_context
def raster_command(
    context: click.Context,
    /,
    path: Path,
    out: Path,
    tile: int,
    overlap: int,
    bands: str | None,
    min_piece: int,
    model: str | None,
    priority: str,
    parallel: int,
    here: bool,
    device: str,
    as_json: bool,
    api_url: str | None,
    api_key: str | None,
    **params: object,
) -> None:
    # With them come rasterio and numpy, which other commands do not need
    from maskfleet.raster.source import Raster
    from maskfleet.raster.tiles import reader

    with reporting_errors(option_of):
        if overlap + 2 * EDGE > tile // 2:
            most = tile // 2 - 2 * EDGE
            raise InvalidRequest("invalid_spec", f"--overlap: it may be up to {most} for tiles of {tile} pixels.")
        if not path.is_file():
            raise InvalidRequest("file_not_found", f"There is no file {str(path)!r}.")
        options: dict[str, object] = {} if here else {"model": model, "priority": priority}
        spec = build_spec("everything", IMAGE_COMES_BESIDE, outputs="coco", **options, **params)  # type: ignore[arg-type]  # click's options, by name
        with Raster(path, _numbers(bands)) as raster:
            layout = Layout(raster.size_wh, tile, overlap)
            if here:
                work, name, parallel = *_in_this_process(spec, model, device), 1
            else:
                work, name = _through_server(spec, api_url, api_key), ""
            nms_thresh = spec.params.crops_nms_thresh if isinstance(spec, EverythingJob) else 1.0
            read = partial(reader, layout, min_piece=min_piece, nms_thresh=nms_thresh)
            tiles = _Tiles(raster, layout, out, work, read, as_json=as_json)
            asked = "\n".join((digest_of(spec, name), raster.version, str(raster.bands), str(layout)))
            digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
            folder = out / _TILES
            run = Run(folder, digest, tiles.do, parallel=parallel, as_json=as_json, thing="tile", join=tiles.join)
            context.exit(run.do(tiles.photos))


class _Tiles:
    """The tiles of a raster as photographs, each made when its turn comes, and what is made of all results."""

    def __init__(
        self,
        raster: Raster,
        layout: Layout,
        out: Path,
        work: Work,
        read: Callable[[Mapping[int, Path]], Callable[[int], Sequence[TileMask]]],
        *,
        as_json: bool,
    ) -> None:
        self._read = read
        self._raster = raster
        self._layout = layout
        self._out = out
        self._work = work
        self._as_json = as_json
        boxes = [layout.box(number) for number in range(len(layout))]
        self._numbers = {f"tile {at + 1} at {box.left},{box.top}": at for at, box in enumerate(boxes)}
        self.photos = [NamedPhoto(name, PurePosixPath(f"{at + 1:06}")) for name, at in self._numbers.items()]

    def do(self, task: Task) -> Did:
        """Do one tile; one that shows nothing needs no job."""
        from maskfleet.raster.tiles import write_empty

        box = self._layout.box(self._numbers[task.photo.name])
        picture = self._raster.png(box)
        if picture is None:
            write_empty(task.folder, box)
            return Did(0)
        return self._work(replace(task, photo=replace(task.photo, data=picture)))

    def join(self, done: Sequence[Entry]) -> str:
        """Make the raster's files of the tiles that are done, and say what is in them."""
        from maskfleet.raster.seams import Seams
        from maskfleet.raster.written import LABELS, OUTLINES, ObjectFiles

        say("Joining the masks of all tiles …")
        folders = {self._numbers[entry.photo]: self._out / _TILES / entry.folder for entry in done}
        seams = Seams(self._layout, folders.keys(), self._read(folders))
        written = ObjectFiles(self._out, self._raster, self._layout, seams).write()
        outlines, labels = self._out / OUTLINES, self._out / LABELS
        if self._as_json:
            files = {"outlines": str(outlines), "label_map": str(labels)}
            tell(json.dumps({"raster": str(self._raster.path), **asdict(written), **files}))
        joined = f"{written.joined:,} of them joined at seams"
        return f"{counted(written.objects, 'object')}, {joined}, in {outlines} and {labels}"


def _through_server(spec: Spec, api_url: str | None, api_key: str | None) -> Work:
    server = server_of(api_url, api_key)
    with server.client(say) as client:
        note_model(client, spec.model)  # also finds out whether the server answers, before any thread asks it
    seldom = Seldom()
    return ServerWork(lambda: server.client(seldom.say), spec).do


def _in_this_process(spec: Spec, model: str | None, device: str) -> tuple[Work, str]:
    """Return what does a tile, and the model's name."""
    try:
        require("worker")
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"--here needs: pip install 'maskfleet[geo,worker]' (there is no package {error.name!r} here)."
        ) from error
    from maskfleet.cli.segment import Segmenter

    segmenter = Segmenter(spec, model, device)
    return segmenter.do, segmenter.model_name


def _numbers(bands: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(band) for band in bands.split(",")) if bands else ()
    except ValueError as error:
        raise InvalidRequest("invalid_spec", f"--bands: {bands!r} does not have the form 4,3,2.") from error
