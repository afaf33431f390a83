"""Datumaro, by which CVAT reads COCO, reads coco.json."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from datumaro import AnnotationType, Dataset
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 384, 303


@pytest.mark.parametrize("name", ["coco.json", "coco_polygons.json"])
def test_datumaro_reads_every_mask_with_its_pixels_and_score(
    name: str, result: Path, tmp_path: Path, masks: list[np.ndarray]
) -> None:
    # CVAT's own edition of the package reads the file wherever it lies; this one only within COCO's folders.
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    file = shutil.copy(result / name, tmp_path / "annotations")

    (item,) = Dataset.import_from(file, "coco_instances")

    assert item.id == "coins"
    pixels = np.zeros((len(masks), HEIGHT, WIDTH), bool)
    of_masks = (AnnotationType.mask, AnnotationType.polygon)
    for annotation in (found for found in item.annotations if found.type in of_masks):
        assert annotation.attributes["score"] > 0.5
        if annotation.type is AnnotationType.mask:
            pixels[annotation.id - 1] = annotation.image
        else:  # a piece of a mask
            pixels[annotation.id - 1] |= coco_pixels(annotation.points)
    assert np.array_equal(pixels, masks)


def coco_pixels(polygon: list[float]) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([list(polygon)], HEIGHT, WIDTH))).astype(bool)
