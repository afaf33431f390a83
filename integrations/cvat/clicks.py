"""A CVAT interaction function: clicks and a box become a mask, made by maskfleet.

cvat-cli function create-native "Segment Anything" --function-file clicks.py
cvat-cli function run-agent FUNCTION_ID --function-file clicks.py
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.masks import encode_mask
from cvat_sdk.models import AttributeValRequest

from maskfleet import Client

if TYPE_CHECKING:
    from PIL.Image import Image


class Clicks:
    """Segments the object that an annotator points at."""

    spec = cvataa.InteractionFunctionSpec(min_pos_points=0, min_neg_points=0, min_bounding_boxes=0)

    def __init__(self) -> None:
        self._client = Client(os.environ["MASKFLEET_API_URL"], os.environ["MASKFLEET_API_KEY"])

    def preprocess_image(self, context: cvataa.InteractionFunctionContext, image: Image) -> str:  # noqa: ARG002
        """Make the image known to the service, once for all clicks on it; return its id."""
        return self._client.embed_image(image).image_id

    def detect(
        self,
        context: cvataa.InteractionFunctionContext,  # noqa: ARG002
        pp_image: str,
        prompts: cvataa.InteractionPrompts,
    ) -> list[cvataa.InteractionResultShape]:
        """Return the mask of one object; nothing without a prompt, or if there is no object."""
        points = [*prompts.pos_points, *prompts.neg_points]
        box = prompts.bounding_box
        if not points and box is None:
            return []
        (mask,) = self._client.segment(
            image_id=pp_image,
            points=points or None,
            labels=[1] * len(prompts.pos_points) + [0] * len(prompts.neg_points) or None,
            box=None if box is None else (*box[0], *box[1]),
            outputs=[],
        )
        if not mask.area:
            return []
        confidence = AttributeValRequest(
            spec_id=cvataa.InteractionResultAttributes.CONFIDENCE,
            value=f"{min(max(mask.predicted_iou, 0), 1):.4f}",
        )
        return [cvataa.InteractionResultShape(type="mask", points=encode_mask(mask.array()), attributes=[confidence])]


create = Clicks
