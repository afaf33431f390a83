"""The notebook in docs/ runs from its first cell to its last, and shows what it showed when it was committed.

``make test-notebook``; ``make notebook`` runs it in the same way and keeps its outputs.  Not named test_*: a kernel
takes some seconds, and belongs to no other test.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from maskfleet.stack.process import StackLine

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "mask_generation.ipynb"


def executed(stack: StackLine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # Any: nbformat ships no types
    """Run the notebook where it lies among the examples, and return it with its outputs."""
    (folder / "examples").symlink_to(NOTEBOOK.parents[2] / "examples")
    (folder / "docs" / "notebooks").mkdir(parents=True)
    for name, value in {"API_URL": stack.api_url, "API_KEY": stack.api_key}.items():
        monkeypatch.setenv(f"MASKFLEET_{name}", value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder / "docs" / "notebooks")}},
    )
    client.execute()
    return notebook


def pictures(notebook: Any) -> Iterator[Image.Image]:  # Any: as above
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            found = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", data.get("text/html", ""))
            for text in [*found, *([data["image/png"]] if "image/png" in data else [])]:
                yield Image.open(io.BytesIO(base64.b64decode(text)))


def shapes(notebook: Any) -> list[list[tuple[str, ...]]]:  # Any: as above
    """What each cell shows, by kind; and how many lines it prints."""
    return [
        [
            (output.output_type, *sorted(output.get("data", ())), str(output.get("text", "").count("\n")))
            for output in cell.get("outputs", ())
        ]
        for cell in notebook.cells
    ]


def test_the_notebook_shows_what_was_committed(
    running_stack: StackLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)

    run = executed(running_stack, tmp_path, monkeypatch)

    assert shapes(run) == shapes(committed)
    assert [picture.size for picture in pictures(run)] == [picture.size for picture in pictures(committed)]
    assert len(list(pictures(run))) >= 6
    assert (tmp_path / "docs" / "notebooks" / "coins" / "coco.json").is_file()


def test_what_was_committed_holds_no_secret_and_no_path_of_a_machine() -> None:
    text = NOTEBOOK.read_text()

    assert re.search(r"mf_[0-9a-f]{12}|Traceback|/home/|/root/|/tmp/|/work/", text) is None
