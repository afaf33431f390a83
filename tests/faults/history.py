"""Everything observed while faults were injected: an append-only log, one JSON line per observation.

Times are seconds since the epoch, by this machine's clock, which is also Redis' own.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(Sight):
    """The masks that a kind of job yields when nothing is broken, as a digest."""

    kind: str
    masks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Sight):
    """A 202.  key: the Idempotency-Key it was sent with.  hooked: a webhook was requested.

    batch: the one that the job belongs to; then the key includes the number of its image.
    """

    key: str
    job: str
    kind: str
    tenant: str = "ant"
    hooked: bool = True
    batch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAccepted(Sight):
    """A 202 to a batch of that many images.  jobs: those listed in the response."""

    key: str
    batch: str
    images: int
    jobs: tuple[str, ...]
    tenant: str = "ant"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShown(Sight):
    """A batch as the API showed it after the run; status ``absent`` if it knew no such batch."""

    batch: str
    status: str
    jobs: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Sight):
    """Any other response to a submit; status 0 for none at all."""

    key: str
    status: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown(Sight):
    """A job's state as the API showed it; ``absent`` if the API knew no such job.

    way: ``asked`` for it, or ``followed`` its events.  version: the event's id.  place: in the queue, None for none.
    stream: how many streams of this job were read before.
    """

    job: str
    status: str
    error: str = ""
    way: str = "asked"
    version: int = 0
    place: int | None = None
    stream: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAsked(Sight):
    """A request to cancel a job.  accepted: the API's answer was 202; otherwise there was none."""

    job: str
    accepted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Notified(Sight):
    """A webhook that arrived.

    job: what it is about, a job or a batch.  answered: the status of the response; 0 if it was left to time out.
    signed_for: the tenant whose secret signed it; empty for none.  body: a digest.  counts: how many jobs of a batch
    ended in each state.
    """

    job: str
    webhook_id: str
    status: str
    answered: int
    signed_for: str = "ant"
    event: str = ""
    body: str = ""
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Sight):
    """What the store held for a job.

    masks, manifest: digests; empty without a manifest.  whole: each object of the manifest has its digest.
    attempt: the one that the manifest names.  folders: those in which its objects are, below the job's own.
    """

    job: str
    masks: str = ""
    whole: bool = True
    manifest: str = ""
    attempt: int = 0
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted(Sight):
    """One attempt, from the ledger's record of it.  worker: the node that made it."""

    job: str
    number: int
    worker: str
    started: float
    ended: float | None
    outcome: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Believed(Sight):
    """A worker's log says that its attempt ended the job, so the ledger must have answered that it did."""

    job: str
    number: int
    worker: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Broke(Sight):
    """A fault, from ``at`` to ``until``.

    harms: what it may break, as in HARMS.  acted: False if it found nothing to break.  node: the one whose process it
    hit, empty if it did not hit a single node.  loses_since: Redis lost what was written from then on, if anything.
    """

    name: str
    until: float
    harms: str
    acted: bool
    effect: str = ""
    node: str = ""
    loses_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOver(Sight):
    """How many entries each of the ledger's own lists still had after the run, and how many it should have.

    of_records: one for each record, so that fewer are right if Redis lost some.
    """

    what: str
    found: int
    expected: int
    of_records: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(Sight):
    """The ledger's totals after the run."""

    totals: dict[str, int]


_SIGHTS = {
    kind.__name__: kind
    for kind in (
        Reference,
        Accepted,
        BatchAccepted,
        BatchShown,
        Refused,
        Shown,
        CancelAsked,
        Notified,
        Stored,
        Attempted,
        Believed,
        Broke,
        LeftOver,
        Counted,
    )
}


class History:
    """The log; any thread may append, and nothing is modified."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def note(self, sight: Sight) -> None:
        line = json.dumps({"saw": type(sight).__name__, **asdict(sight)})
        with self._lock:
            if not self._lines.closed:  # a watcher may still observe something after the log is closed
                self._lines.write(line + "\n")

    def read(self) -> tuple[Sight, ...]:
        return read_history(self.path.read_text().splitlines())


def read_history(lines: Iterable[str]) -> tuple[Sight, ...]:
    """Read the log back, in the order in which it was written."""

    def parsed(line: str) -> Sight:
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(line).items()}
        return _SIGHTS[fields.pop("saw")](**fields)

    return tuple(parsed(line) for line in lines)
