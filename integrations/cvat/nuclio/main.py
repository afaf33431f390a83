"""A CVAT interactor for Nuclio: clicks and a box become a mask, made by maskfleet."""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64decode
from typing import Any

from maskfleet import Client, Mask, Refused

#: Images whose ids are remembered, by the sha256 of their bytes.
MAX_KNOWN = 1000


def init_context(context: Any) -> None:
    """Connect to the service, once for each of the function's workers."""
    context.user_data.client = Client(os.environ["MASKFLEET_API_URL"], os.environ["MASKFLEET_API_KEY"])
    context.user_data.known = {}


def handler(context: Any, event: Any) -> Any:
    """Return a mask as rows of 0 and 1.

    The event's body is CVAT's: ``image`` as base64, ``pos_points``, ``neg_points`` and perhaps ``obj_bbox``.
    """
    asked = event.body
    positive, negative, box = asked["pos_points"], asked["neg_points"], asked.get("obj_bbox")
    mask = segment(
        context.user_data,
        b64decode(asked["image"]),
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


def segment(state: Any, photo: bytes, **prompt: Any) -> Mask:
    """Return the mask of one object.  CVAT sends the image with each click; it goes on to the service once."""
    digest = hashlib.sha256(photo).hexdigest()
    for attempt in range(2):
        if digest not in state.known:
            if len(state.known) >= MAX_KNOWN:
                state.known.clear()
            state.known[digest] = state.client.embed_image(photo).image_id
        try:
            mask: Mask = state.client.segment(image_id=state.known[digest], outputs=[], **prompt)[0]
        except Refused as error:
            if error.code != "image_not_known" or attempt:
                raise
            del state.known[digest]  # the service has forgotten it, which it does after a week
        else:
            return mask
    raise AssertionError
