"""A hundred and fifty jobs, and every fault at least once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.figures import figures
from tests.faults.laboratory import Laboratory
from tests.faults.run import Plan, run
from tests.faults.schedule import ALL, AT_THE_END, EMPTIED


@pytest.mark.timeout(900)  # some thirty faults, one after another
def test_nothing_is_lost_doubled_or_stuck_under_any_fault(tmp_path: Path) -> None:
    plan = Plan(jobs=150, seconds=90, seed=1, faults=ALL, gap_s=0.5, patience_s=100, empties=True)

    with Laboratory(tmp_path) as lab:
        verdict = run(lab, plan, print)
        seen = figures(lab.history.read(), verdict)

    assert verdict.broken == ()
    assert set(seen.faults) == {kind.name for kind in (*ALL, EMPTIED, AT_THE_END)}
    assert seen.fenced > 0
    assert seen.requeued > 0
