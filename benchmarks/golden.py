"""``python -m benchmarks.golden``: which damaged tensors of the bundled checkpoint its golden masks find out.

Every second tensor (``--every``) is set to zero in turn.  Prints those that are not found out.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from maskfleet.data import DEMO_MODEL
from maskfleet.jobs.errors import ModelWrong
from maskfleet.jobs.logs import configure_logs
from maskfleet.worker.golden import ModelTest, read_golden
from maskfleet.worker.sam.model import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=2, help="Take each n-th tensor; a test takes some 0.7 s.")
    every = parser.parse_args().every
    configure_logs("WARNING", program="benchmark")
    golden, tensors = read_golden(str(DEMO_MODEL), ""), load_file(DEMO_MODEL / "model.safetensors")
    tested, missed = 0, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(DEMO_MODEL, Path(name) / "model"))
        for tensor in [*tensors][::every]:
            if not tensors[tensor].any():
                continue
            tested += 1
            damaged = tensors | {tensor: torch.zeros_like(tensors[tensor])}
            save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
            try:
                ModelTest(load_model(str(folder), "cpu"), golden)()
            except ModelWrong:
                continue
            missed.append(tensor)
    print(f"{tested} tensors set to zero in turn; {len(missed)} not found out:", *missed, sep="\n")


if __name__ == "__main__":
    main()
