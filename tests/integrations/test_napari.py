"""The plug-in's widgets, in a viewer without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import napari
import numpy as np
import pytest
from napari.layers import Image as ImageLayer, Labels, Layer
from PIL import Image
from qtpy.QtCore import QEventLoop, QTimer

from maskfleet import Client

#: A point on a coin and one beside it, as napari has them: rows and columns of pixels' middles.
ON, OFF = (43.5, 334.5), (19.5, 299.5)
BOXES = ((304, 14, 366, 73), (244, 94, 298, 146))


@pytest.fixture
def viewer() -> Iterator[napari.Viewer]:
    viewer = napari.Viewer(show=False)
    yield viewer
    viewer.close()


@pytest.fixture
def image(viewer: napari.Viewer, coins: Path) -> ImageLayer:
    """The coins, which lie somewhere else in the world and are twice as large there."""
    data = np.asarray(Image.open(coins))
    return viewer.add_image(data, name="coins", contrast_limits=(0, 255), scale=(2, 2), translate=(10, 20))


def labelled(viewer: napari.Viewer, name: str, **layers: Layer) -> Labels:
    """Open a widget of the plug-in, choose layers, press its button and return the layer of labels that comes."""
    _, widget = viewer.window.add_plugin_dock_widget("napari-maskfleet", name)
    for parameter, layer in layers.items():
        widget[parameter].value = layer
    worker = widget()
    waiting, failures = QEventLoop(), []
    worker.errored.connect(failures.append)
    worker.finished.connect(waiting.quit)
    QTimer.singleShot(60_000, waiting.quit)
    waiting.exec()
    assert failures == []
    (labels,) = (layer for layer in viewer.layers if isinstance(layer, Labels))
    return labels


def drawn(masks: Any) -> np.ndarray:
    """Label each pixel with the smallest mask there; of two of the same size, the later one."""
    labels = np.zeros(masks.size_hw, int)
    areas = np.full(masks.size_hw, np.inf)
    for mask in masks:
        top = mask.array() & (mask.area <= areas)
        labels[top], areas[top] = mask.number + 1, mask.area
    return labels


def in_world(image: ImageLayer, positions: Any) -> np.ndarray:
    return np.array([image.data_to_world(position) for position in positions])


def test_everything_gets_labels_that_lie_on_the_image(viewer: napari.Viewer, image: ImageLayer, client: Client) -> None:
    labels = labelled(viewer, "Segment everything", image=image)

    expected = client.segment(image.data, mode="everything")
    assert np.array_equal(labels.data, drawn(expected))
    assert labels.metadata["predicted_iou"] == expected.scores.tolist()
    assert np.array_equal(labels.data_to_world((1, 1)), image.data_to_world((1, 1)))


def test_points_label_an_object(viewer: napari.Viewer, image: ImageLayer, client: Client) -> None:
    on = viewer.add_points(in_world(image, [ON]), name="on")
    off = viewer.add_points(in_world(image, [OFF]), name="off")

    labels = labelled(viewer, "Segment an object at points", image=image, on=on, off=off)

    (expected,) = client.segment(image.data, points=[(335, 44), (300, 20)], labels=[1, 0])
    assert np.array_equal(labels.data == 1, expected.array())


def test_shapes_label_the_objects_in_their_boxes_and_the_image_is_sent_once(
    viewer: napari.Viewer, image: ImageLayer, client: Client
) -> None:
    corners = [
        in_world(image, [(top - 0.5, left - 0.5), (bottom - 0.5, right - 0.5)]) for left, top, right, bottom in BOXES
    ]
    boxes = viewer.add_shapes(corners, shape_type="rectangle")

    labels = labelled(viewer, "Segment objects in boxes", image=image, boxes=boxes)

    expected = client.segment(image.data, mode="box", prompts=[{"box": box} for box in BOXES])
    assert np.array_equal(labels.data, drawn(expected))
    from napari_maskfleet.service import client as own

    assert len(own()._remembered) == 1


def test_a_stack_is_refused_in_words(viewer: napari.Viewer) -> None:
    from napari_maskfleet.service import pixels_of

    stack = viewer.add_image(np.zeros((3, 20, 20), np.uint8))

    with pytest.raises(ValueError, match="Split Stack"):
        pixels_of(stack)


def test_what_is_seen_is_what_is_sent(viewer: napari.Viewer) -> None:
    from napari_maskfleet.service import pixels_of

    grey = viewer.add_image(np.array([[100, 200], [300, 900]], np.uint16), contrast_limits=(200, 300))
    colours = viewer.add_image(np.array([[[0.0, 0.5, 2.0]]]), rgb=True)

    assert pixels_of(grey).tolist() == [[0, 0], [255, 255]]
    assert pixels_of(colours).tolist() == [[[0, 127, 255]]]
