"""A GeoTIFF's place on the map: read, turned with the picture, written with the masks, and never a reason to fail."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import JobRecord
from maskfleet.jobs.schema.spec import EverythingJob
from maskfleet.worker.attempt import Workbench
from maskfleet.worker.image.decode import Photo, decode_photo
from maskfleet.worker.image.georeference import Georeference, Transform, checked
from maskfleet.worker.image.sandbox import Sandbox
from maskfleet.worker.output.formats import make_artifacts
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.segmentation import Segmentation
from tests.worker.test_known_images import COMPUTED, STORE, new_worker, origin_of, run, uploaded
from tests.worker.test_outlines import masks_of_every_kind

LIMIT = 1_000_000
#: 10 m pixels near the Elbe, UTM zone 33 north.
SCALE, TIE = (10.0, 10.0, 0.0), (0.0, 0.0, 0.0, 400_000.0, 5_650_000.0, 0.0)
NORTH_UP: Transform = (10.0, 0.0, 400_000.0, 0.0, -10.0, 5_650_000.0)
#: Turned by 30° or so.
MATRIX = (8.0, 5.0, 0.0, 400_000.0, 5.0, -8.0, 0.0, 5_650_000.0, *(0.0,) * 7, 1.0)
UTM_33 = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
UTM_33_POINT = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2, 3072, 0, 1, 32633)
WGS_84 = (1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, 4326)
#: A Mercator of one's own: its name, its ellipsoid and its longitude are in the other two tags.
OWN = (
    *(1, 1, 0, 5, 1024, 0, 1, 1, 1026, 34737, 8, 0, 3072, 0, 1, 32767),
    *(3080, 34736, 1, 2, 2057, 34736, 2, 0),
)
TYPES = {33550: "d", 33922: "d", 34264: "d", 34735: "H", 34736: "d", 34737: "s", 274: "H"}


def geotiff(pixels: npt.NDArray[Any] | None = None, **tags: Any) -> bytes:
    """Write a TIFF.  tags: t33550=(…) for tag 33550."""
    extra = []
    for name, value in tags.items():
        tag = int(name[1:])
        kind = TYPES[tag] if not isinstance(value, str) else "s"
        extra.append((tag, kind, 0 if kind == "s" else np.size(value), value, True))
    file = io.BytesIO()
    pixels = np.full((8, 10, 3), 90, np.uint8) if pixels is None else pixels
    tifffile.imwrite(file, pixels, photometric="rgb", metadata=None, extratags=extra)
    return file.getvalue()


def georeference_of(data: bytes) -> Georeference:
    georeference = decode_photo(data, LIMIT).georeference
    assert georeference is not None
    return georeference


def placed(transform: Transform, x: float, y: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    return a * x + b * y + c, d * x + e * y + f


@pytest.mark.parametrize(
    ("tags", "transform"),
    [
        pytest.param({"t33550": SCALE, "t33922": TIE}, NORTH_UP, id="scale"),
        pytest.param(
            {"t33550": SCALE, "t33922": (3.0, 2.0, 0.0, 400_030.0, 5_649_980.0, 0.0)}, NORTH_UP, id="tied-elsewhere"
        ),
        pytest.param(
            {"t33550": SCALE, "t33922": (*TIE[:3], 400_005.0, 5_649_995.0, 0.0), "t34735": UTM_33_POINT},
            NORTH_UP,
            id="middles-of-pixels",
        ),
        pytest.param({"t33550": (10.0, -10.0, 0.0), "t33922": TIE}, NORTH_UP, id="negative-scale"),
        pytest.param({"t34264": MATRIX}, (8.0, 5.0, 400_000.0, 5.0, -8.0, 5_650_000.0), id="matrix"),
        pytest.param(
            {"t34264": MATRIX, "t34735": UTM_33_POINT},
            (8.0, 5.0, 399_993.5, 5.0, -8.0, 5_650_001.5),
            id="matrix-of-middles",
        ),
    ],
)
def test_the_transform_is_that_of_pixels_corners(tags: dict[str, Any], transform: Transform) -> None:
    assert georeference_of(geotiff(**tags)).transform == transform


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_keeps_the_place_of_each_pixel(orientation: int) -> None:
    stored = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(3, 4, 3)
    data = geotiff(stored, t34264=MATRIX, t274=orientation)

    photo = decode_photo(data, LIMIT)

    assert photo.georeference is not None
    assert photo.georeference.transform is not None
    as_stored = georeference_of(geotiff(stored, t34264=MATRIX)).transform
    assert as_stored is not None
    for (v, u), value in np.ndenumerate(photo.pixels[..., 0]):
        y, x = divmod(int(value) // 3, 4)
        assert placed(photo.georeference.transform, u + 0.5, v + 0.5) == placed(as_stored, x + 0.5, y + 0.5)


@pytest.mark.parametrize(
    ("tags", "epsg"),
    [
        pytest.param({"t34735": UTM_33}, 32633, id="projected"),
        pytest.param({"t34735": WGS_84}, 4326, id="geographic"),
        pytest.param({"t34735": (1, 1, 0, 1, 2048, 0, 1, 4258)}, 4258, id="of-no-kind"),
        pytest.param({"t34735": (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 54_009)}, None, id="private-code"),
        pytest.param({"t34735": OWN, "t34736": (6_378_137.0, 298.25, 12.5), "t34737": "My own||"}, None, id="own"),
        pytest.param({}, None, id="none"),
    ],
)
def test_a_crs_is_known_by_its_epsg_code(tags: dict[str, Any], epsg: int | None) -> None:
    georeference = georeference_of(geotiff(t33550=SCALE, t33922=TIE, **tags))

    assert (georeference.epsg, georeference.note) == (epsg, "")
    assert dict(georeference.geo_keys).get(1025, 1) == 1


def test_a_tiff_without_geotiff_tags_has_no_georeference() -> None:
    assert decode_photo(geotiff(), LIMIT).georeference is None


NAN, HUGE = float("nan"), 1e308


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param({"t33550": SCALE}, id="no-tie-point"),
        pytest.param({"t33922": TIE * 4}, id="control-points"),
        pytest.param({"t33550": (0.0, 0.0, 0.0), "t33922": TIE}, id="pixels-of-no-size"),
        pytest.param({"t33550": (NAN, 1.0, 0.0), "t33922": TIE}, id="nan"),
        pytest.param({"t33550": (HUGE, HUGE, 0.0), "t33922": TIE}, id="overflow"),
        pytest.param({"t33550": (1e-12, 1e-12, 0.0), "t33922": TIE}, id="pixels-that-doubles-cannot-tell-apart"),
        pytest.param({"t33550": "ten metres", "t33922": TIE}, id="text-for-numbers"),
        pytest.param({"t33550": SCALE[:1], "t33922": TIE}, id="short-scale"),
        pytest.param({"t33550": SCALE, "t33922": TIE[:5]}, id="short-tie-point"),
        pytest.param({"t34264": MATRIX[:12]}, id="short-matrix"),
        pytest.param({"t34264": (1.0,) * 16}, id="matrix-in-one-direction"),
        pytest.param({"t34735": UTM_33}, id="crs-alone"),
    ],
)
def test_a_place_that_cannot_be_used_is_left_out_with_a_note(tags: dict[str, Any]) -> None:
    georeference = georeference_of(geotiff(**tags))

    assert georeference.transform is None
    assert georeference.note.startswith("The file's place on the map was left out: ")


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param({"t34735": UTM_33[:7]}, id="short-directory"),
        pytest.param({"t34735": (2, *UTM_33[1:])}, id="another-version"),
        pytest.param({"t34735": "EPSG:32633"}, id="text"),
        pytest.param({"t34735": (1, 1, 0, 1, 2057, 34736, 1, 9)}, id="beyond-the-doubles"),
        pytest.param({"t34735": (1, 1, 0, 1, 2057, 34736, 1, 0), "t34736": (NAN,)}, id="nan"),
        pytest.param({"t34735": (1, 1, 0, 1, 2057, 33550, 1, 0)}, id="in-another-tag"),
        pytest.param({"t34735": (1, 1, 0, 1, 1026, 34737, 5, 0)}, id="texts-that-are-missing"),
        pytest.param({"t34735": (1, 1, 0, 60_000)}, id="keys-that-are-missing"),
    ],
)
def test_keys_that_cannot_be_used_are_left_out_with_a_note_and_the_place_stays(tags: dict[str, Any]) -> None:
    georeference = georeference_of(geotiff(t33550=SCALE, t33922=TIE, **tags))

    assert (georeference.transform, georeference.geo_keys) == (NORTH_UP, ())
    assert "GeoTIFF keys" in georeference.note


def test_of_very_long_keys_the_code_is_kept() -> None:
    long = (1, 1, 0, 3, 1024, 0, 1, 1, 1026, 34737, 3000, 0, 3072, 0, 1, 32633)

    georeference = georeference_of(geotiff(t33550=SCALE, t33922=TIE, t34735=long, t34737="x" * 2999 + "|"))

    assert (georeference.epsg, len(georeference.geo_keys)) == (32633, 3)
    assert "too long" in georeference.note


def test_a_georeference_passes_the_sandbox_unchanged() -> None:
    data = geotiff(t33550=SCALE, t33922=TIE, t34735=OWN, t34736=(6_378_137.0, 298.25, 12.5), t34737="My own||")
    sandbox = Sandbox()

    try:
        assert sandbox.decode(data, LIMIT).georeference == georeference_of(data)
    finally:
        sandbox.close()


@pytest.mark.parametrize(
    "lie",
    [
        {"transform": [NAN, 0, 0, 0, -1, 0]},
        {"transform": [1, 0]},
        {"transform": "abcdef"},
        {"transform": [10**400, 0, 0, 0, -1, 0]},
        {"geo_keys": [[1024, 70_000]]},
        {"geo_keys": [[1024, {}]]},
        {"geo_keys": [[1024, [HUGE, NAN]]]},
        {"geo_keys": [[1026, "x" * 3000]]},
        {"geo_keys": 5},
    ],
    ids=lambda lie: str(lie)[:40],
)
def test_what_a_decoder_says_is_not_believed_unchecked(lie: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  each has its own words
        checked({"transform": None, "geo_keys": [], "note": "", **lie}, (10, 8))


def files_of(georeference: Georeference | None, segmentation: Segmentation) -> dict[str, bytes]:
    spec = EverythingJob.model_validate(
        {"mode": "everything", "image": {"url": "https://a.example/p"}, "outputs": ["geojson", "label_map"]}
    )
    photo = Photo(
        np.zeros((*segmentation.size_wh[::-1], 3), np.uint8), segmentation.size_wh, "TIFF", None, georeference
    )
    return {file.name: file.data for file in make_artifacts(photo, spec, segmentation, "photo.tif")}


@pytest.mark.parametrize(
    ("data", "crs"),
    [
        (geotiff(t33550=SCALE, t33922=TIE, t34735=UTM_33), "urn:ogc:def:crs:EPSG::32633"),
        (geotiff(t33550=(0.001, 0.001, 0.0), t33922=(0.0, 0.0, 0.0, 13.7, 51.0, 0.0), t34735=WGS_84), "CRS84"),
        (geotiff(t34264=MATRIX, t34735=OWN, t34736=(6_378_137.0, 298.25, 12.5), t34737="My own||"), None),
        # Orientation 5 makes rows and columns run as x and y do: outlines keep their direction
        (geotiff(np.full((10, 8, 3), 90, np.uint8), t34264=MATRIX, t274=5), None),
    ],
    ids=["projected", "geographic", "own", "turned"],
)
def test_outlines_are_in_map_coordinates_and_labels_lie_on_the_map(data: bytes, crs: str | None) -> None:
    segmentation, georeference = masks_of_every_kind(), georeference_of(data)
    assert georeference.transform is not None

    files = files_of(georeference, segmentation)

    there, here = json.loads(files["outlines.geojson"]), json.loads(files_of(None, segmentation)["outlines.geojson"])
    assert there["crs"] is None if crs is None else there["crs"]["properties"]["name"].endswith(crs)
    assert "crs" not in here
    assert there["image"] == {**here["image"], "transform": list(georeference.transform)}
    for on_map, in_pixels in zip(there["features"], here["features"], strict=True):
        assert on_map["properties"] == in_pixels["properties"]
        for ring, corners in zip(rings(on_map), rings(in_pixels), strict=True):
            expected = [placed(georeference.transform, x, y) for x, y in corners]
            assert ring == pytest.approx(np.array(expected), abs=1e-5, rel=0) or ring == pytest.approx(
                np.array(expected[::-1]), abs=1e-5, rel=0
            )
            assert (signed_area(ring) > 0) == (signed_area(corners) > 0)
    with tifffile.TiffFile(io.BytesIO(files["label_map.tif"])) as tiff:
        assert tiff.pages.first.tags[42113].value == "0"
    again = Photo(np.zeros((8, 10, 3), np.uint8), (10, 8), "TIFF", None, georeference_of(files["label_map.tif"]))
    assert again.georeference == georeference
    png = tifffile.imread(io.BytesIO(files["label_map.tif"]))
    assert (png == labels_in(files["label_map.png"])).all()


def test_without_a_transform_all_is_as_for_any_image() -> None:
    segmentation = masks_of_every_kind()

    assert files_of(Georeference(None, ((3072, 32633),), "Left out."), segmentation) == files_of(None, segmentation)


def rings(feature: dict[str, Any]) -> list[npt.NDArray[np.float64]]:
    geometry = feature["geometry"]
    if geometry is None:
        return []
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return [np.array(ring) for polygon in polygons for ring in polygon]


def signed_area(ring: npt.NDArray[np.float64]) -> float:
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def labels_in(png: bytes) -> npt.NDArray[Any]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_manifest_says_where_an_image_lies_also_of_a_known_one(bench: Workbench, model: SegmentationModel) -> None:
    """A second worker knows the image by what the first one kept, and does not decode it."""
    pixels = np.frombuffer(random.randbytes(8 * 10 * 3), np.uint8).reshape(8, 10, 3)
    image = uploaded(bench, geotiff(pixels, t33550=SCALE, t33922=TIE, t34735=UTM_33))
    place = {"mode": "point", "prompts": [{"points": [[1, 1]]}], "outputs": ["coco", "geojson", "label_map"]}

    jobs = [run(one, image, **place) for one in (bench, new_worker(bench, model))]

    assert [origin_of(job) for job in jobs] == [COMPUTED, STORE]
    for job in jobs:
        manifest = manifest_of(bench, job)
        assert manifest.georeference is not None
        assert (manifest.georeference.crs, manifest.georeference.transform) == ("EPSG:32633", NORTH_UP)
        assert manifest.georeference.note is None
        names = [file.name for file in manifest.files]
        assert names == ["coco.json", "outlines.geojson", "label_map.png", "label_map.tif"]


def test_a_damaged_georeference_is_noted_in_the_manifest_and_the_job_succeeds(bench: Workbench) -> None:
    image = uploaded(bench, geotiff(t33550=(NAN, 1.0, 0.0), t33922=TIE, t34735=UTM_33))

    job = run(bench, image, mode="point", prompts=[{"points": [[1, 1]]}])

    georeference = manifest_of(bench, job).georeference
    assert georeference is not None
    assert (georeference.crs, georeference.transform) == ("EPSG:32633", None)
    assert georeference.note is not None
    assert "place on the map" in georeference.note


def manifest_of(bench: Workbench, job: JobRecord) -> Manifest:
    assert job.result is not None
    return Manifest.model_validate_json(bench.store.read(job.result.manifest_key))
