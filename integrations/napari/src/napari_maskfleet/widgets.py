"""The plug-in's widgets: each takes layers and adds a layer of labels, without holding the viewer up.

Annotations are evaluated here, not postponed: magicgui makes the widgets of them.
"""

from typing import Any

import numpy as np
from magicgui import magic_factory
from napari.layers import Image, Points, Shapes
from napari.qt.threading import FunctionWorker, create_worker
from napari.types import LayerDataTuple

from napari_maskfleet.service import labels_of, pixels_of, points_xy, segment


@magic_factory(call_button="Segment everything", points_per_side={"min": 1, "max": 100})
def everything(image: Image, points_per_side: int = 32) -> FunctionWorker[LayerDataTuple]:
    """Label everything in an image, looked for at a grid of points."""
    return labels_layer(image, "everything", mode="everything", params={"points_per_crop": points_per_side})


@magic_factory(call_button="Segment the object")
def one_object(image: Image, on: Points, off: Points | None = None) -> FunctionWorker[LayerDataTuple]:
    """Label the object at the points of one layer, without what is at those of another."""
    points, labels = points_xy(image, on, on.data), [1] * len(on.data)
    if off is not None:
        points = np.concatenate([points, points_xy(image, off, off.data)])
        labels += [0] * len(off.data)
    prompt = {"points": points.tolist(), "labels": labels}
    return labels_layer(image, "object", mode="point", prompts=[prompt])


@magic_factory(call_button="Segment the objects")
def in_boxes(image: Image, boxes: Shapes) -> FunctionWorker[LayerDataTuple]:
    """Label the object in each shape's box."""
    corners = [points_xy(image, boxes, corners) for corners in boxes.data]
    prompts = [{"box": [*found.min(axis=0), *found.max(axis=0)]} for found in corners]
    return labels_layer(image, "boxes", mode="box", prompts=prompts)


def labels_layer(image: Image, name: str, **fields: Any) -> FunctionWorker[LayerDataTuple]:
    """Ask the service in a thread, and return what will be a layer of labels that lies on the image."""
    pixels = pixels_of(image)
    place = {part: getattr(image, part) for part in ("scale", "translate", "rotate", "shear", "affine")}

    def ask() -> LayerDataTuple:
        masks = segment(pixels, **fields)
        scores = {"predicted_iou": masks.scores.tolist()}
        return LayerDataTuple(
            (labels_of(masks), {"name": f"{image.name}: {name}", "metadata": scores, **place}, "labels")
        )

    return create_worker(ask, _start_thread=True)
