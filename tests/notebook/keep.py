"""Run the notebook in docs/ and keep its outputs: ``make notebook``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
import pytest

from maskfleet.stack.process import StackProcess
from tests.notebook.check_notebook import NOTEBOOK, executed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        model = NOTEBOOK.parents[2] / "models" / "sam-demo"
        with StackProcess(Path(folder) / "stack", {"MASKFLEET_MODEL": str(model)}) as stack:
            (Path(folder) / "run").mkdir()
            notebook = executed(stack.line, Path(folder) / "run", patch)
    # Of the kernel only that it is Python's: its version would change with each run.
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
