"""Label Studio's converter reads coco_polygons.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from label_studio_sdk.converter.imports.coco import convert_coco_to_ls

from maskfleet.client.pixels import pixels_of_polygons

WIDTH, HEIGHT = 384, 303


def test_the_converter_reads_every_mask_with_its_pixels(result: Path, tmp_path: Path, masks: list[np.ndarray]) -> None:
    convert_coco_to_ls(str(result / "coco_polygons.json"), str(tmp_path / "tasks.json"))

    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"]["image"].endswith("coins.png")
    regions = iter(task["annotations"][0]["result"])
    polygons: list[list[list[int]]] = []
    for region in regions:
        if region["type"] == "rectanglelabels":  # each annotation's box, and then its polygons
            polygons.append([])
            continue
        assert region["value"]["polygonlabels"] == ["object"]
        corners = np.array(region["value"]["points"]) * [WIDTH / 100, HEIGHT / 100]
        assert np.abs(corners - corners.round()).max() < 1e-9
        polygons[-1].append(corners.round().astype(int).ravel().tolist())
    assert np.array_equal([pixels_of_polygons(one, (HEIGHT, WIDTH)) for one in polygons], masks)


def test_the_converter_reads_no_run_length_encoding(result: Path, tmp_path: Path) -> None:
    """Once it does, and this fails, docs/integrations.md has to say so."""
    with pytest.raises(TypeError):
        convert_coco_to_ls(str(result / "coco.json"), str(tmp_path / "tasks.json"))
