"""The faults, and the order in which a seed schedules them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tests.faults.faults import FaultKind, Scene
from tests.faults.faults.on_processes import (
    api_clock_off,
    api_cut_off_at_bell,
    api_killed_between_record_and_bell,
    child_killed_mid_job,
    courier_clock_off,
    courier_killed,
    node_cut_off,
    node_drained,
    node_frozen_past_its_lease,
    node_killed,
    node_suspended_past_its_lease,
    node_with_wrong_credentials,
)
from tests.faults.faults.on_queue import bells_doubled, bells_lost, bells_lost_at_the_end
from tests.faults.faults.on_receiver import receiver_answers_410, receiver_answers_500, receiver_down, receiver_slow
from tests.faults.faults.on_redis import (
    redis_busy,
    redis_connections_killed,
    redis_connections_reset,
    redis_disk_fails,
    redis_emptied,
    redis_fails_over,
    redis_frozen,
    redis_full,
    redis_killed,
    redis_read_only,
    redis_slow,
    redis_without_replicas,
)
from tests.faults.faults.on_store import (
    store_answers_503,
    store_answers_are_cut,
    store_gone,
    store_killed,
    store_slow,
)
from tests.faults.history import Broke

#: Faults that affect a job on either fleet.
OF_ANY_FLEET = (
    FaultKind(child_killed_mid_job, "worker", weight=3, fells=True),
    FaultKind(node_killed, "worker", weight=2, fells=True),
    FaultKind(node_frozen_past_its_lease, "worker", weight=3, fells=True),
    FaultKind(node_suspended_past_its_lease, "worker", weight=2, fells=True),
    FaultKind(node_cut_off, "worker", weight=2, fells=True),
    FaultKind(node_drained, "drain", weight=2),
    FaultKind(redis_connections_killed, "redis", weight=3, fells=True),
    FaultKind(redis_connections_reset, "redis", weight=2, fells=True),
    FaultKind(redis_slow, "redis"),
    FaultKind(redis_killed, "redis", weight=2, fells=True),
    FaultKind(redis_frozen, "redis", fells=True),
    FaultKind(store_answers_503, "store"),
    FaultKind(store_slow, "store"),
    FaultKind(store_answers_are_cut, "store"),
    FaultKind(store_gone, "store", fells=True),
    FaultKind(store_killed, "store", fells=True),
    FaultKind(receiver_down, "nothing", fells=True),
    FaultKind(receiver_slow, "nothing"),
    FaultKind(receiver_answers_500, "nothing"),
)
#: Faults that only a fleet with an API and couriers can have.
OF_OURS = (
    FaultKind(bells_lost, "nothing"),
    FaultKind(bells_doubled, "nothing"),
    FaultKind(redis_full, "redis"),
    FaultKind(redis_without_replicas, "redis"),
    FaultKind(redis_read_only, "redis"),
    FaultKind(redis_disk_fails, "redis"),
    FaultKind(redis_busy, "redis"),
    FaultKind(redis_fails_over, "redis", fells=True),
    FaultKind(node_with_wrong_credentials, "node"),
    FaultKind(receiver_answers_410, "nothing"),
    FaultKind(courier_killed, "nothing", weight=2, fells=True),
    FaultKind(courier_clock_off, "nothing"),
    FaultKind(api_killed_between_record_and_bell, "nothing", weight=2, fells=True),
    FaultKind(api_cut_off_at_bell, "nothing", weight=2, fells=True),
    FaultKind(api_clock_off, "nothing"),
)
ALL = (*OF_ANY_FLEET, *OF_OURS)
#: Strikes once, early in a run: none of the promises to earlier jobs can be kept.
EMPTIED = FaultKind(redis_emptied, "redis")
#: Strikes once, as the last jobs are sent.
AT_THE_END = FaultKind(bells_lost_at_the_end, "nothing")


def shuffled(kinds: tuple[FaultKind, ...], seed: int) -> Callable[[], FaultKind]:
    """Yield the faults one by one: first each once, in an order drawn from the seed, then by weight."""
    pick = random.Random(seed)
    first = pick.sample(kinds, len(kinds))

    def following() -> FaultKind:
        return first.pop() if first else pick.choices(kinds, [kind.weight for kind in kinds])[0]

    return following


def strike(kind: FaultKind, scene: Scene) -> Broke:
    """Inject a fault, and record in the history what it did."""
    began = time.time()
    effect = kind.act(scene)
    broke = Broke(
        at=began,
        name=kind.name,
        until=time.time(),
        harms=kind.harms,
        acted=effect.acted,
        effect=effect.text,
        node=effect.node,
        loses_since=effect.loses_since,
    )
    scene.lab.history.note(broke)
    return broke
