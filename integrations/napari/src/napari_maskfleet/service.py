"""From napari's layers to the service and back: pixels, coordinates, labels."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maskfleet import Client, Masks

if TYPE_CHECKING:
    from napari.layers import Image


@cache
def client() -> Client:
    """Connect to the service when the first widget needs it."""
    return Client(os.environ["MASKFLEET_API_URL"], os.environ["MASKFLEET_API_KEY"])


def segment(pixels: npt.NDArray[np.uint8], **fields: Any) -> Masks:
    """Return an image's masks.  It is sent once: later calls for the same pixels are fast."""
    return client().segment(pixels, remember=True, outputs=[], **fields)


def pixels_of(image: Image) -> npt.NDArray[np.uint8]:
    """Return what an image layer shows as 8 bits: (H, W), between its contrast limits, or (H, W, 3 or 4).

    Raises ValueError for a stack.
    """
    data = np.asarray(image.data)
    if data.ndim != (3 if image.rgb else 2):
        raise ValueError("Choose a single image: this layer is a stack. Layer > Split Stack makes layers of it.")
    if image.rgb:
        return data if data.dtype == np.uint8 else np.asarray(np.clip(data, 0, 1) * 255, np.uint8)
    low, high = image.contrast_limits
    return np.asarray(np.clip((data.astype(np.float64) - low) / (high - low), 0, 1) * 255, np.uint8)


def points_xy(image: Image, layer: Any, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return positions in another layer as the image's x and y, (N, 2).

    In napari the middle of the first pixel is (0, 0), in the service (0.5, 0.5).
    """
    rows = [image.world_to_data(layer.data_to_world(position)) for position in np.asarray(positions, float)]
    height_width = np.shape(image.data)[:2]
    yx = np.asarray(rows).reshape(-1, 2) + 0.5
    return np.clip(yx, 0, height_width)[:, ::-1]


def labels_of(masks: Masks) -> npt.NDArray[np.int32]:
    """Return a label for each pixel, (H, W): from 1 in the order of the masks, where they overlap the smaller one's."""
    labels = np.zeros(masks.size_hw, np.int32)
    for mask in sorted(masks, key=lambda mask: (-mask.area, mask.number)):
        labels[mask.array()] = mask.number + 1
    return labels
