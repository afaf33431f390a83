"""Functions for CVAT segment frames, clicks and boxes, called by its own code."""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import nuclio_sdk
import numpy as np
import pytest
import yaml
from cvat_cli._internal import agent_driver, agent_driver_interaction as interaction
from cvat_cli._internal.common import FunctionLoader
from cvat_sdk.auto_annotation.driver import _AnnotationMapper, _DetectionFunctionContextImpl
from cvat_sdk.masks import decode_mask
from PIL import Image

from maskfleet import Client

ON, OFF, BOX = (335.0, 44.0), (300.0, 20.0), ((304.0, 14.0), (366.0, 73.0))
WIDTH, HEIGHT = 384, 303


def pixels_of(points: list[float]) -> np.ndarray:
    return decode_mask(points, image_width=WIDTH, image_height=HEIGHT)


def loaded(path: Path, **parameters: Any) -> Any:
    """Load a function as cvat-cli does."""
    return FunctionLoader(None, path, parameters).load()


def test_a_frame_gets_masks_that_cvat_accepts(
    integrations: Path, coins: Path, masks: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    function = loaded(integrations / "cvat" / "everything.py", label="coin")
    image = Image.open(coins)

    found = function.detect(_DetectionFunctionContextImpl(frame_name="coins.png"), image)
    stricter = function.detect(_DetectionFunctionContextImpl(frame_name="coins.png", conf_threshold=0.92), image)
    outlines = function.detect(_DetectionFunctionContextImpl(frame_name="coins.png", conv_mask_to_poly=True), image)

    labels_of_task = [cvataa.label_spec("coin", 12, type="any", attributes=[], sublabels=[])]
    for shapes in (found, outlines):
        mapper = _AnnotationMapper(
            logging.getLogger(),
            function.spec.labels,
            labels_of_task,
            allow_unmatched_labels=False,
            conv_mask_to_poly=shapes is outlines,
        )
        tags, remapped = mapper.validate_and_remap(shapes, 3)
        assert (tags, len(remapped), {shape.label_id for shape in remapped}) == ([], len(shapes), {12})
    assert np.array_equal([pixels_of(shape.points) for shape in found], masks)
    assert 0 < len(stricter) < len(found)
    assert len(outlines) >= len(found)
    assert not caplog.records


@pytest.fixture
def agent(integrations: Path) -> cvataa.InteractionFunction:
    """The function in a process of CVAT's agent."""
    function: cvataa.InteractionFunction = loaded(integrations / "cvat" / "clicks.py")
    agent_driver.set_worker_current_function(function)
    interaction.AgentInteractionFunctionDriver.init_worker(None)
    return function


def test_clicks_and_a_box_become_masks_and_the_image_is_sent_once(
    agent: cvataa.InteractionFunction, coins: Path, client: Client
) -> None:
    def asked(on: int = 0, off: int = 0, box: Any = None) -> interaction._InteractionPromptsImpl:
        return interaction._InteractionPromptsImpl(pos_points=(ON,) * on, neg_points=(OFF,) * off, bounding_box=box)

    with_box = interaction._worker_job_interact("frame 0", Image.open(coins), asked(box=BOX))
    with_points = interaction._worker_job_interact_from_cache("frame 0", asked(on=1, off=1))
    nothing = interaction._worker_job_interact_from_cache("frame 0", asked())

    (of_box,) = client.segment(coins, box=(*BOX[0], *BOX[1]))
    (of_points,) = client.segment(coins, points=[ON, OFF], labels=[1, 0])
    for shapes, expected in ((with_box, of_box), (with_points, of_points)):
        assert [shape.type for shape in shapes] == ["mask"]
        assert np.array_equal(pixels_of(shapes[0].points), expected.array())
        assert float(shapes[0].attributes[0].value) == pytest.approx(expected.predicted_iou, abs=1e-4)
    assert nothing == []
    fields = interaction.AgentInteractionFunctionDriver.get_remote_function_fields(agent.spec)
    assert fields == {"min_pos_points": 0, "min_neg_points": 0, "startswith_box_optional": True}


@pytest.fixture
def nuclio(integrations: Path) -> ModuleType:
    """The module that function.yaml names as the handler's."""
    folder = integrations / "cvat" / "nuclio"
    spec = yaml.safe_load((folder / "function.yaml").read_text())
    assert spec["metadata"]["annotations"]["type"] == "interactor"
    module, _, name = spec["spec"]["handler"].partition(":")
    found = importlib.util.spec_from_file_location(module, folder / f"{module}.py")
    assert found is not None
    assert found.loader is not None
    handlers = importlib.util.module_from_spec(found)
    found.loader.exec_module(handlers)
    assert callable(getattr(handlers, name))
    return handlers


def test_the_nuclio_function_answers_cvats_requests(
    nuclio: ModuleType, coins: Path, client: Client, forget_images: Callable[[], int]
) -> None:
    context = nuclio_sdk.Context(logger=nuclio_sdk.Logger(logging.INFO))
    nuclio.init_context(context)

    def asked(on: int = 0, off: int = 0, box: Any = None) -> np.ndarray:
        """Ask as CVAT's server does."""
        image = base64.b64encode(coins.read_bytes()).decode()
        body = {"image": image, "pos_points": [ON] * on, "neg_points": [OFF] * off, "obj_bbox": box}
        event = nuclio_sdk.Event(body=json.loads(json.dumps(body)), content_type="application/json")
        response = nuclio.handler(context, event)
        assert (response.status_code, response.content_type) == (200, "application/json")
        return np.array(json.loads(response.body)["mask"])

    with_box, with_points = asked(box=BOX), asked(on=1, off=1)
    sent = forget_images()
    forgotten = asked(on=1)

    (of_box,) = client.segment(coins, box=(*BOX[0], *BOX[1]))
    (of_points,) = client.segment(coins, points=[ON, OFF], labels=[1, 0])
    (of_one,) = client.segment(coins, points=[ON])
    for mask, expected in ((with_box, of_box), (with_points, of_points), (forgotten, of_one)):
        assert np.array_equal(mask, expected.array())
    assert (sent, forget_images()) == (1, 1)
