"""Label Studio's own server for ML backends runs ours."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from label_studio_sdk.converter.brush import decode_rle
from werkzeug.serving import make_server

from maskfleet import Client

WIDTH, HEIGHT = 384, 303
CONFIG = """
<View>
  <Image name="image" value="$photo"/>
  <BrushLabels name="brush" toName="image"><Label value="Coin"/><Label value="Stone"/></BrushLabels>
  <KeyPointLabels name="points" toName="image" smart="true"><Label value="Coin"/></KeyPointLabels>
  <RectangleLabels name="boxes" toName="image" smart="true"><Label value="Coin"/></RectangleLabels>
</View>
"""


@contextmanager
def serving(server: Any) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def backend(integrations: Path) -> Iterator[str]:
    """The backend's URL."""
    sys.path.insert(0, str(integrations / "label_studio"))
    with serving(make_server("127.0.0.1", 0, importlib.import_module("_wsgi").app, threaded=True)) as url:
        yield url


@pytest.fixture(scope="module")
def photo(coins: Path) -> Iterator[str]:
    """The photograph's URL, as in a task."""
    files = partial(SimpleHTTPRequestHandler, directory=coins.parent)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), files)) as url:
        yield f"{url}/coins.png"


def called(backend: str, path: str, body: dict[str, Any] | None = None) -> Any:
    response = requests.request("GET" if body is None else "POST", f"{backend}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def drawn(kind: str, label: str = "Coin", **value: Any) -> dict[str, Any]:
    """What Label Studio sends of a shape that was drawn with a smart tool."""
    positive = {"is_positive": value.pop("is_positive")} if "is_positive" in value else {}
    percent = {"x": WIDTH, "width": WIDTH, "y": HEIGHT, "height": HEIGHT}
    value = {name: 100 * number / percent[name] for name, number in value.items()}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {**size, **positive, "type": kind, "value": {**value, kind: [label]}, "from_name": "any", "to_name": "image"}


def test_the_backend_answers_label_studio_with_brush_masks(
    backend: str, photo: str, client: Client, coins: Path, forget_images: Callable[[], int]
) -> None:
    assert called(backend, "/health")["status"] == "UP"
    called(backend, "/setup", {"project": "1.1700000000", "schema": CONFIG, "hostname": "", "access_token": ""})

    def predicted(*shapes: dict[str, Any]) -> list[dict[str, Any]]:
        context = {"context": {"result": list(shapes)}} if shapes else {}
        task = {"id": 1, "data": {"photo": photo}}
        body = {"tasks": [task], "project": "1.1700000000", "label_config": CONFIG, "params": context}
        predictions: list[dict[str, Any]] = called(backend, "/predict", body)["results"]
        return predictions

    before = predicted()
    point = drawn("keypointlabels", x=335, y=44, is_positive=1)
    clicked = predicted(point, drawn("keypointlabels", x=300, y=20, is_positive=0))
    sent = forget_images()
    boxed = predicted(drawn("rectanglelabels", "Stone", x=304, y=14, width=62, height=59))

    assert before == []
    (of_points,) = client.segment(coins, points=[(335, 44), (300, 20)], labels=[1, 0])
    (of_box,) = client.segment(coins, box=(304, 14, 366, 73))
    for (prediction,), mask, label in ((clicked, of_points, "Coin"), (boxed, of_box, "Stone")):
        (region,) = prediction["result"]
        assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "brush", "image")
        assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
        assert (region["value"]["format"], region["value"]["brushlabels"]) == ("rle", [label])
        assert prediction["score"] == region["score"] == pytest.approx(mask.predicted_iou)
        colours = decode_rle(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)
        assert np.array_equal(colours[:, :, 3] > 0, mask.array())
    assert (sent, forget_images()) == (1, 1)
