"""Six kinds of files of the masks that are shown, as the tools that take them read them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter
from playwright.sync_api import expect
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from maskfleet import Client
from tests.browser.conftest import Playground

Mask = npt.NDArray[np.bool_]


def download(playground: Playground, name: str) -> Path:
    playground.page.get_by_role("tab", name="Download").click()
    with playground.page.expect_download() as found:
        playground.page.get_by_role("button", name=re.compile(f"^{name}")).click()
    return Path(found.value.path())


def read_coco(path: Path) -> tuple[dict[str, Any], list[Mask]]:
    dataset = json.loads(path.read_text())
    return dataset, [coco_masks.decode(one["segmentation"]).astype(bool) for one in dataset["annotations"]]


@pytest.fixture
def filled(playground: Playground) -> Playground:
    """Everything and a click; what is shown is less than what was found."""
    playground.open_example()
    playground.fill()
    playground.page.get_by_label("Area at least").fill("70")
    playground.click(480, 400)
    playground.says("Segmented")
    return playground


def test_each_file_holds_the_masks_that_are_shown(filled: Playground, api: Client) -> None:
    shown = filled.page.locator("#masks .mask").count()
    path = download(filled, "COCO")
    dataset, masks = read_coco(path)

    # COCO: what pycocotools reads, with the service's own masks.
    assert len(COCO(str(path)).anns) == len(masks) == shown > 2
    assert [int(mask.sum()) for mask in masks] == [one["area"] for one in dataset["annotations"]]
    job = next(api.get(job.id) for job in api.jobs() if job.mode == "everything")
    assert job.inline is not None
    by_service = {mask.segmentation.counts for mask in job.inline.masks}  # type: ignore[union-attr]  # it asked for RLE
    assert len(by_service & {one["segmentation"]["counts"] for one in dataset["annotations"]}) == shown - 1

    with zipfile.ZipFile(download(filled, "PNGs")) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        pngs = [Image.open(io.BytesIO(archive.read(name))) for name in names]
    assert names == [f"masks/{number:04}.png" for number in range(shown)]
    assert {png.mode for png in pngs} == {"1"}
    assert all((np.asarray(png) == mask).all() for png, mask in zip(pngs, masks, strict=True))

    labels = np.asarray(Image.open(download(filled, "Label map")))
    wanted = np.zeros((720, 960), int)
    for number in sorted(range(shown), key=lambda number: -masks[number].sum()):
        wanted[masks[number]] = number + 1
    assert (labels == wanted).all()

    geojson = json.loads(download(filled, "GeoJSON").read_text())
    assert [round(area_of(one["geometry"]["coordinates"])) for one in geojson["features"]] == [
        one["area"] for one in dataset["annotations"]
    ]
    for feature in geojson["features"]:
        rings = [ring for polygon in feature["geometry"]["coordinates"] for ring in polygon]
        assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in rings)
    assert all(signed(polygon[0]) > 0 for one in geojson["features"] for polygon in one["geometry"]["coordinates"])

    svg = ElementTree.fromstring(download(filled, "SVG").read_bytes())  # noqa: S314 - the page's own
    paths = svg.findall("{http://www.w3.org/2000/svg}path")
    areas = [round(sum(signed(ring) for ring in rings_of(path.attrib["d"]))) for path in paths]
    assert sorted(areas) == sorted(one["area"] for one in dataset["annotations"])
    assert svg.attrib["viewBox"] == "0 0 960 720"

    overlay = Image.open(download(filled, "Overlay")).convert("RGB")
    picture = Image.open(
        io.BytesIO(filled.page.request.get(f"{filled.stack.api_url}/playground/pictures/pebbles.jpg").body())
    ).convert("RGB")
    assert overlay.size == picture.size == (960, 720)
    tinted = np.abs(np.asarray(overlay).astype(int) - np.asarray(picture)).max(axis=2) > 12
    covered = Image.fromarray(np.any(masks, axis=0))
    near = np.asarray(covered.convert("L").filter(ImageFilter.MaxFilter(7))) > 0  # outlines are half outside
    assert tinted[np.asarray(covered)].mean() > 0.9
    assert tinted[~near].mean() < 0.01


def test_nothing_is_offered_while_nothing_is_shown(playground: Playground) -> None:
    playground.open_example()
    playground.page.get_by_role("tab", name="Download").click()

    expect(playground.page.locator("#formats button:disabled")).to_have_count(6)


def signed(ring: list[list[float]]) -> float:
    xy = np.asarray(ring)
    x, y = xy[:, 0], xy[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def area_of(polygons: list[list[list[list[float]]]]) -> float:
    return sum(signed(ring) for polygon in polygons for ring in polygon)


def rings_of(path: str) -> list[list[list[float]]]:
    return [
        [[float(number) for number in pair.split()] for pair in ring.removeprefix("M").split("L")]
        for ring in path.split("Z")
        if ring
    ]
