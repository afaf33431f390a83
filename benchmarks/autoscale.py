"""Simulate the fleet's size under our number, under KEDA on a list's length, and under CPU.

    python -m benchmarks.autoscale

The jobs take as long as whole jobs took in results/core.json: the bundled model's (1 to 4 s) or those of ViT-B's and
SAM 2's shapes (19 to 39 s).  Nothing is run; benchmarks/autoscale_model.py says what is modelled.  One core, a few
minutes.  Draws docs/pictures/autoscale.png.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.autoscale_model import (
    Autoscaler,
    Cluster,
    Moment,
    Outcome,
    Work,
    arrivals_at,
    of_cpu,
    of_desired_workers,
    of_list_length,
)
from benchmarks.machine import RESULTS, ROOT, keep, percentile
from maskfleet.jobs.fleet import FleetRules
from maskfleet.jobs.schema.spec import Priority

TARGET_WAIT_S = 60.0
HOUR_S = 3600.0
#: KEDA's default.  Who knows how long jobs take would set as many as one worker does in the target wait.
DEFAULT_LIST_LENGTH = 5
#: As in the walkthrough of the HorizontalPodAutoscaler.
CPU_TARGET = 0.5
OURS, TUNED, DEFAULT, CPU = "ours", "list, tuned", "list, 5", "CPU 50 %"
#: Ours, but down to the highest number of 60 s; and with the cold start as the target wait, too.
QUICK, PATIENT = "ours, down after 60 s", "and target wait = cold start"
COLOURS = {QUICK: "#0b6e4f", TUNED: "#c77d0a", DEFAULT: "#b33a3a", CPU: "#5b5b9a"}
INK = "#333333"


@dataclass(frozen=True)
class Scenario:
    """load: how many workers' work arrives at a time, in seconds since the beginning.  peak: its maximum."""

    name: str
    load: Callable[[float], float]
    peak: float
    duration_s: float
    most: int
    cold_s: float
    large: bool
    began: int = 0


def steady(workers: float) -> Callable[[float], float]:
    return lambda _: workers


def wave(low: float, high: float) -> Callable[[float], float]:
    """A day: lowest at its beginning and end, highest in the middle."""
    return lambda at: low + (high - low) * (1 - math.cos(2 * math.pi * at / (24 * HOUR_S))) / 2


def burst(usual: float, factor: float, from_s: float, for_s: float) -> Callable[[float], float]:
    return lambda at: usual * factor if from_s <= at < from_s + for_s else usual


SCENARIOS = (
    Scenario("steady, 10 GPUs, small jobs", steady(6), 6, 4 * HOUR_S, 10, 60, False, 7),
    Scenario("steady, 100 GPUs, large jobs", steady(60), 60, 4 * HOUR_S, 100, 120, True, 65),
    Scenario("steady, 5,000 GPUs, large jobs", steady(4000), 4000, 1 * HOUR_S, 5000, 120, True, 4100),
    Scenario("a day, 2 to 60 workers' work, large jobs", wave(2, 60), 60, 24 * HOUR_S, 100, 120, True, 3),
    Scenario("a day, 0 to 500 workers' work, large jobs", wave(0, 500), 500, 24 * HOUR_S, 1000, 120, True),
    *(
        Scenario(
            f"burst of 100× for 10 min, cold start {cold_s} s",
            burst(0.5, 100, HOUR_S, 600),
            50,
            3 * HOUR_S,
            200,
            cold_s,
            False,
        )
        for cold_s in (30, 120, 300)
    ),
    Scenario(
        "burst of 100× for 10 min, large jobs, 5,000 GPUs",
        burst(20, 100, HOUR_S, 600),
        2000,
        2 * HOUR_S,
        5000,
        120,
        True,
        25,
    ),
)
#: What the picture shows: the unit of its axis in seconds, its name, and from when to when.
SHOWN = {
    "a day, 2 to 60 workers' work, large jobs": (HOUR_S, "hours", (8.0, 10.0)),
    "burst of 100× for 10 min, cold start 120 s": (60.0, "minutes", (55.0, 95.0)),
}


def recorded_s(*, large: bool) -> list[float]:
    """Return how long whole jobs took: the bundled model's, or those of the large models' shapes."""
    models = ("vit-b", "sam2") if large else ("demo",)
    runs = json.loads((RESULTS / "core.json").read_text())
    return [
        row["ours"]["whole_job_s"]
        for run in runs.values()
        if run["options"]["model"] in models and run["options"].get("stage", "whole") == "whole"
        for row in run["rows"]
    ]


def work_of(scenario: Scenario) -> Work:
    seconds = recorded_s(large=scenario.large)
    mean_s = sum(seconds) / len(seconds)
    arrivals = list(
        arrivals_at(lambda at: scenario.load(at) / mean_s, scenario.peak / mean_s, scenario.duration_s, seed=1)
    )
    chance = random.Random(2)
    return Work(arrivals, [chance.choice(seconds) for _ in arrivals])


def autoscalers(scenario: Scenario) -> list[Autoscaler]:
    seconds = recorded_s(large=scenario.large)
    mean_s = sum(seconds) / len(seconds)
    rules = FleetRules({Priority.NORMAL: TARGET_WAIT_S}, max_workers=scenario.most)
    patient = FleetRules({Priority.NORMAL: scenario.cold_s}, max_workers=scenario.most)
    return [
        Autoscaler(OURS, of_desired_workers(rules), to_zero=True),
        Autoscaler(QUICK, of_desired_workers(rules), to_zero=True, stabilization_s=60),
        *(
            [Autoscaler(PATIENT, of_desired_workers(patient), to_zero=True, stabilization_s=60)]
            if scenario.cold_s > TARGET_WAIT_S
            else []
        ),
        Autoscaler(TUNED, of_list_length(max(1, round(TARGET_WAIT_S / mean_s))), to_zero=True),
        Autoscaler(DEFAULT, of_list_length(DEFAULT_LIST_LENGTH), to_zero=True),
        Autoscaler(CPU, of_cpu(CPU_TARGET), to_zero=False),
    ]


def figures(outcome: Outcome, work: Work) -> dict[str, float]:
    return {
        **{f"wait_p{percent}_s": round(percentile(outcome.waits, percent), 1) for percent in (50, 95, 99)},
        "gpu_hours": round(outcome.gpu_s / HOUR_S, 1),
        "of_the_ideal": round(outcome.gpu_s / work.gpu_s, 2),
        "handed_back": outcome.handed_back,
    }


def draw(shown: dict[str, dict[str, list[Moment]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, rows = plt.subplots(2, len(shown), figsize=(11, 6.4), layout="constrained", sharex="col")
    for column, (name, of) in enumerate(shown.items()):
        scenario = next(one for one in SCENARIOS if one.name == name)
        unit_s, unit, window = SHOWN[name]
        workers, queue = rows[0][column], rows[1][column]
        for scaler, moments in of.items():
            within = [one for one in moments if window[0] <= one.at / unit_s <= window[1]]
            at = [one.at / unit_s for one in within]
            width = 2.0 if scaler == QUICK else 1.2
            workers.plot(at, [one.workers for one in within], color=COLOURS[scaler], label=scaler, linewidth=width)
            queue.plot(at, [one.queued for one in within], color=COLOURS[scaler], linewidth=width)
        times = [window[0] + (window[1] - window[0]) * step / 500 for step in range(501)]
        workers.plot(
            times,
            [scenario.load(at * unit_s) for at in times],
            color=INK,
            linestyle=":",
            label="work that arrives",
        )
        workers.set(title=name, ylabel="workers" if column == 0 else None)
        queue.set(xlabel=unit, ylabel="queued jobs" if column == 0 else None)
        queue.set_yscale("symlog", linthresh=10)
    figure.legend(
        *rows[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=9
    )
    for axes in rows.flat:
        axes.set_ylim(bottom=0)
        axes.tick_params(colors=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="scenarios whose name has this in it; nothing is kept then")
    only = parser.parse_args().only
    found: dict[str, dict[str, dict[str, float]]] = {}
    shown: dict[str, dict[str, list[Moment]]] = {}
    for scenario in SCENARIOS:
        if only not in scenario.name:
            continue
        work = work_of(scenario)
        for scaler in autoscalers(scenario):
            outcome = Cluster(work, scaler, cold_s=scenario.cold_s, most=scenario.most, replicas=scenario.began).run()
            found.setdefault(scenario.name, {})[scaler.name] = figures(outcome, work)
            print(scenario.name, len(work.arrivals), "jobs", scaler.name, found[scenario.name][scaler.name], flush=True)
            if scenario.name in SHOWN and scaler.name in COLOURS:
                shown.setdefault(scenario.name, {})[scaler.name] = outcome.moments
    if not only:
        draw(shown, ROOT / "docs" / "pictures" / "autoscale.png")
        keep("autoscale", "python -m benchmarks.autoscale", found)


if __name__ == "__main__":
    main()
