"""A Label Studio ML backend: a click or a box becomes a brush mask, made by maskfleet.

Label Studio's own server for backends runs it: ``label-studio-ml start``, see README.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from label_studio_ml.model import LabelStudioMLBase
from label_studio_sdk._extensions.label_studio_tools.core.utils.io import get_local_path
from label_studio_sdk.converter.brush import mask2rle

from maskfleet import Client

client = Client(os.environ["MASKFLEET_API_URL"], os.environ["MASKFLEET_API_KEY"])


class Maskfleet(LabelStudioMLBase):
    """Segments the object that an annotator points at."""

    def predict(
        self,
        tasks: list[dict[str, Any]],
        context: dict[str, Any] | None = None,
        **_: Any,
    ) -> list[dict[str, Any]]:
        """Return a brush mask for the points and the box that were drawn so far; nothing before the first."""
        drawn = (context or {}).get("result")
        if not drawn:
            return []
        brush, tag = next(
            (name, tag) for name, tag in self.parsed_label_config.items() if tag["type"].startswith("Brush")
        )
        image = tasks[0]["data"][tag["inputs"][0]["value"]]
        photo = Path(get_local_path(image, task_id=tasks[0].get("id"))).read_bytes()
        # Only the first click on a photograph sends it.
        (mask,) = client.segment(photo, remember=True, outputs=[], **prompt_of(drawn))
        last = drawn[-1]
        region = {
            "id": uuid4().hex[:10],
            "type": "brushlabels",
            "from_name": brush,
            "to_name": tag["to_name"][0],
            "original_width": last["original_width"],
            "original_height": last["original_height"],
            "image_rotation": 0,
            "score": mask.predicted_iou,
            "value": {
                "format": "rle",
                "rle": mask2rle(mask.array().astype("uint8") * 255),
                "brushlabels": last["value"][last["type"]],
            },
        }
        return [{"result": [region], "score": mask.predicted_iou, "model_version": "maskfleet"}]


def prompt_of(drawn: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what was drawn as a prompt in pixels: points, on the object or off it, and the last box."""
    points, labels, box = [], [], None
    for shape in drawn:
        value, x_scale, y_scale = shape["value"], shape["original_width"] / 100, shape["original_height"] / 100
        x, y = value["x"] * x_scale, value["y"] * y_scale
        if shape["type"] == "keypointlabels":
            points.append((x, y))
            labels.append(int(shape.get("is_positive", True)))
        elif shape["type"] == "rectanglelabels":
            box = (x, y, x + value["width"] * x_scale, y + value["height"] * y_scale)
    return {"points": points or None, "labels": labels or None, "box": box}
