"""FiftyOne's importer reads coco.json into its database."""

from __future__ import annotations

from pathlib import Path

import fiftyone as fo
import numpy as np
import pytest


@pytest.mark.parametrize("name", ["coco.json", "coco_polygons.json"])
def test_fiftyone_reads_every_mask_with_its_pixels_and_scores(
    name: str, result: Path, coins: Path, masks: list[np.ndarray]
) -> None:
    dataset = fo.Dataset.from_dir(
        dataset_type=fo.types.COCODetectionDataset,
        data_path=str(coins.parent),
        labels_path=str(result / name),
        label_types="segmentations",
        label_field="masks",
    )

    sample = dataset.one(fo.ViewField("filepath").ends_with("coins.png"))
    detections = sample["masks"].detections
    for detection, expected in zip(detections, masks, strict=True):
        height, width = expected.shape
        x, y, w, h = (
            round(share * size) for share, size in zip(detection.bounding_box, (width, height) * 2, strict=True)
        )
        pixels = np.zeros_like(expected)
        pixels[y : y + h, x : x + w] = detection.mask
        assert np.array_equal(pixels, expected)
        assert detection.label == "object"
        assert detection.confidence == detection["predicted_iou"]
        assert detection["crop_box"] == [0, 0, width, height]
        assert "parent_id" in detection.field_names
