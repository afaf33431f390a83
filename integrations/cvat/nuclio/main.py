"""A CVAT interactor for Nuclio: clicks and a box become a mask, made by maskfleet."""

from __future__ import annotations

import json
import os
from base64 import b64decode
from typing import Any

from maskfleet import Client


def init_context(context: Any) -> None:
    """Connect to the service, once for each of the function's workers."""
    context.user_data.client = Client(os.environ["MASKFLEET_API_URL"], os.environ["MASKFLEET_API_KEY"])


def handler(context: Any, event: Any) -> Any:
    """Return a mask as rows of 0 and 1.

    The event's body is CVAT's: ``image`` as base64, ``pos_points``, ``neg_points`` and perhaps ``obj_bbox``.
    """
    asked = event.body
    positive, negative, box = asked["pos_points"], asked["neg_points"], asked.get("obj_bbox")
    # CVAT sends the image with each click; it goes on to the service once.
    (mask,) = context.user_data.client.segment(
        b64decode(asked["image"]),
        remember=True,
        outputs=[],
        points=[*positive, *negative] or None,
        labels=[1] * len(positive) + [0] * len(negative) or None,
        box=[*box[0], *box[1]] if box else None,
    )
    return context.Response(
        body=json.dumps({"mask": mask.array().astype(int).tolist()}),
        headers={},
        content_type="application/json",
        status_code=200,
    )
