"""Each mutant can be made of the code as it is; `make mutants` runs them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.laboratory import ROOT
from tests.faults.mutants import MUTANTS, Mutant
from tests.faults.schedule import ALL


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_to_the_code(mutant: Mutant, tmp_path: Path) -> None:
    copy = tmp_path / mutant.file
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutant.file, copy)

    mutant.apply(tmp_path)

    assert copy.read_text() != (ROOT / mutant.file).read_text()
    assert set(mutant.faults) <= {kind.name for kind in ALL}


def test_there_are_at_least_ten() -> None:
    assert len({mutant.name for mutant in MUTANTS}) >= 10
