"""The fleet on the wire: each model's jobs, its workers, and how many it should have."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from maskfleet.jobs.fleet import (
    DesiredWorkers,
    FleetRules,
    ModelLoad,
    Reason,
    desired_workers,
    job_seconds,
)
from maskfleet.jobs.open_enum import OpenEnum
from maskfleet.jobs.schema.wire import Request, Wire


class WorkerState(OpenEnum):
    """What a worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    WITHDRAWN = "withdrawn"


class FleetClass(Wire):
    """A model's jobs in one class."""

    priority: str
    queued: int
    running: int
    oldest_s: float = Field(description="The age of the oldest queued job; 0 for none.")
    job_s: float | None = Field(description="How long a job takes, as measured lately; null before one has succeeded.")
    target_wait_s: float = Field(description="Within this time a job should start.")
    backlog_s: float = Field(description="How long one worker would take for the queued and running jobs.")


class FleetWorkers(Wire):
    """How many of a model's workers are in each state."""

    starting: int = Field(description="They load the model.")
    idle: int
    busy: int
    draining: int = Field(description="They shut down, and take no more jobs.")
    withdrawn: int = Field(description="They take no jobs until their self-test passes.")

    def counts(self) -> dict[WorkerState, int]:
        """Return the count of each state."""
        return {state: getattr(self, state) for state in WorkerState}


class ModelFleet(Wire):
    """A model's jobs and workers, and how many workers it should have."""

    model: str
    desired_workers: int = Field(description="How many workers it should have in all: set replicas to this.")
    reason: Reason = Field(description="What decided the number; branch on this.")
    explanation: str = Field(description="The same for people.")
    backlog_s: float = Field(description="How long one worker would take for all queued and running jobs.")
    queued: int
    running: int
    min_workers: int
    max_workers: int
    workers: FleetWorkers
    classes: tuple[FleetClass, ...] = Field(description="The most urgent first.")

    @classmethod
    def of(cls, load: ModelLoad, rules: FleetRules) -> ModelFleet:
        """Return a model's view."""
        desired: DesiredWorkers = desired_workers(load, rules)
        fewest, most = rules.bounds(load.model)
        busy = load.kept + load.workers.elsewhere
        return cls(
            model=load.model,
            desired_workers=desired.workers,
            reason=desired.reason,
            explanation=desired.explanation,
            backlog_s=round(desired.backlog_s, 3),
            queued=load.queued,
            running=load.running,
            min_workers=fewest,
            max_workers=most,
            workers=FleetWorkers(
                starting=load.workers.starting,
                idle=max(0, load.workers.ready - busy),
                busy=busy,
                draining=load.workers.draining,
                withdrawn=load.workers.withdrawn,
            ),
            classes=tuple(
                FleetClass(
                    priority=one.priority,
                    queued=one.queued,
                    running=one.running,
                    oldest_s=round(one.oldest_s, 3),
                    job_s=one.job_s,
                    target_wait_s=rules.wait_s(one.priority),
                    backlog_s=round((one.queued + one.running) * job_seconds(load, one, rules), 3),
                )
                for one in load.classes
            ),
        )


class FleetWorker(Wire):
    """A worker that announced itself lately."""

    node: str
    model: str
    device: str
    state: WorkerState
    job: str | None = Field(description="The id of the job that it runs.")
    since: datetime | None = Field(description="Since when it starts, takes jobs, drains or is withdrawn.")
    version: str | None = Field(description="The version of maskfleet that it runs.")
    seen_s_ago: int | None = Field(description="When it last announced itself, which it does every few seconds.")
    jobs: int = Field(description="How many jobs its process has done.")
    start_s: float | None = Field(None, description="How long its process took from its start until it was ready.")
    fault: str | None = Field(description="Why it has withdrawn.")


class FleetView(Wire):
    """Every model's jobs, workers and number, the default model first; and every worker."""

    models: tuple[ModelFleet, ...]
    workers: tuple[FleetWorker, ...]


class FleetModelQuery(Request):
    """Which model."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None,
        description="A model's name as in `GET /v1/models`; the default one if left out. `outputs` stands for the jobs "
        "that need no model.",
    )
