"""A CVAT auto-annotation function: everything in each frame, as masks made by maskfleet.

cvat-cli task auto-annotate 137 --function-file everything.py -p label=str:object
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.masks import encode_mask

from maskfleet import Client

if TYPE_CHECKING:
    from cvat_sdk.models import LabeledShapeRequest
    from PIL.Image import Image


class Everything:
    """Segments frames; the masks have one label, since Segment Anything does not say what it found."""

    def __init__(self, label: str = "object", **params: float) -> None:
        """params: those of the mode, such as ``points_per_crop``, ``pred_iou_thresh`` and ``crop_n_layers``."""
        self._client = Client(os.environ["MASKFLEET_API_URL"], os.environ["MASKFLEET_API_KEY"])
        self._params = params
        self.spec = cvataa.DetectionFunctionSpec(labels=[cvataa.label_spec(label, 0, type="mask")])

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image) -> list[LabeledShapeRequest]:
        """Return the masks of a frame, or their outlines if polygons are asked for (CVAT's have no holes)."""
        params = dict(self._params)
        if context.conf_threshold is not None:
            params["pred_iou_thresh"] = context.conf_threshold
        masks = self._client.segment(image, mode="everything", params=params, outputs=[])
        if not context.conv_mask_to_poly:
            return [cvataa.mask(0, encode_mask(mask.array())) for mask in masks]
        pieces = (piece for feature in masks.to_geojson()["features"] for piece in feature["geometry"]["coordinates"])
        return [cvataa.polygon(0, [value for corner in piece[0][:-1] for value in corner]) for piece in pieces]


create = Everything
