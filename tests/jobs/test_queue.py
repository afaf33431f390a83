"""Which job is claimed next: fair turns, what was handed back, lost bells, at any depth and at one cost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest
import redis

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import BacklogLimit, Claim, Created, NewJobs, Reply
from maskfleet.jobs.ledger.places import QueuePlaces
from maskfleet.jobs.messages import MOST_BELLS, Bells, Publisher
from maskfleet.jobs.schema.record import JobRecord, Metrics, ResultSummary
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status

SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"}}'
RESULT = ResultSummary(prefix="p/", manifest_key="p/m", masks=0, best_score=None, metrics=Metrics())
INTERACTIVE, NORMAL, BULK = QUEUES = ("sam.m.interactive", "sam.m.normal", "sam.m.bulk")
MANY = 1_000_000


def create(ledger: Ledger, tenant: str = "ant", jobs: int = 1, queue: str = NORMAL) -> list[str]:
    """Record jobs, 1,000 at a time, as batches do."""
    made: list[str] = []
    while len(made) < jobs:
        new = NewJobs(tenant, queue, (SPEC,) * min(1000, jobs - len(made)), 24 * 3600)
        made += ledger.create(new, max_in_flight=MANY, idempotency_ttl_s=60).job_ids
    return made


def claim_next(ledger: Ledger, *queues: str) -> Claim:
    return ledger.claim_next(queues or QUEUES, "node", lease_s=600, max_attempts=3)


def claimed(ledger: Ledger, *queues: str) -> JobRecord:
    record = claim_next(ledger, *queues).record
    assert record is not None
    return record


def tenants_of(ledger: Ledger, claims: int) -> list[str]:
    """Claim jobs, and return whose they were."""
    return [claimed(ledger).tenant for _ in range(claims)]


def waiting_jobs(ledger: Ledger, client: redis.Redis) -> list[JobRecord]:
    """Return the records of all waiting jobs, oldest first."""
    ids = cast("list[str]", client.zrange(f"mf:queued:{NORMAL}", 0, -1))
    return [record for job in ids if (record := ledger.read(job))]


# Fair turns.


def test_one_job_is_claimed_within_two_claims_among_anothers_ten_thousand(ledger: Ledger) -> None:
    create(ledger, "ant", 10_000)
    tenants_of(ledger, 50)
    create(ledger, "bee")

    assert "bee" in tenants_of(ledger, 2)


def test_a_tenant_that_leaves_and_comes_back_gets_no_more_than_its_turns(ledger: Ledger) -> None:
    create(ledger, "zebra", 100)
    seen = []
    for _ in range(40):
        create(ledger, "ant")  # one at a time, so that it leaves the queue with each claim
        seen += tenants_of(ledger, 2)

    assert Counter(seen)["zebra"] >= 39


def test_turns_that_were_not_taken_are_not_saved_up(ledger: Ledger) -> None:
    create(ledger, "ant", 200)
    create(ledger, "bee", 1)
    tenants_of(ledger, 100)
    create(ledger, "bee", 100)

    seen = Counter(tenants_of(ledger, 20))

    assert 9 <= seen["bee"] <= 11


def test_tenants_share_by_their_weights(redis_client: redis.Redis) -> None:
    ledger = Ledger(redis_client, 3600, {"bee": 3, "wasp": 0.5})
    for tenant in ("ant", "bee", "wasp"):
        create(ledger, tenant, 400)

    seen = Counter(tenants_of(ledger, 450))

    assert (seen["bee"], seen["ant"], seen["wasp"]) == (
        pytest.approx(300, abs=2),
        pytest.approx(100, abs=2),
        pytest.approx(50, abs=2),
    )


def test_a_tenants_own_jobs_are_claimed_oldest_first(ledger: Ledger) -> None:
    jobs = create(ledger, "ant", 30)
    create(ledger, "bee", 30)

    order = [record.id for record in (claimed(ledger) for _ in range(60)) if record.tenant == "ant"]

    assert order == jobs


def test_turns_are_taken_within_a_class_and_classes_are_drained_in_order(ledger: Ledger) -> None:
    create(ledger, "ant", 4, BULK)
    create(ledger, "ant", 4, INTERACTIVE)
    create(ledger, "bee", 4, BULK)

    order = [(record.queue, record.tenant) for record in (claimed(ledger) for _ in range(12))]

    assert order[:4] == [(INTERACTIVE, "ant")] * 4
    assert [queue for queue, _ in order[4:]] == [BULK] * 8
    assert Counter(tenant for _, tenant in order[4:8]) == {"ant": 2, "bee": 2}


def test_jobs_that_fail_again_and_again_get_no_more_than_their_tenants_share(ledger: Ledger) -> None:
    create(ledger, "ant", 100)
    create(ledger, "bee", 100)
    seen = Counter[str]()

    for _ in range(60):
        record = claimed(ledger)
        seen[record.tenant] += 1
        if record.tenant == "ant":
            ledger.release(record, delay_s=0, charged=True, outcome="source_unavailable")
        else:
            ledger.succeed(record, RESULT)

    assert seen["bee"] >= 19  # at most three attempts come in a row


# Handed back.


def test_a_job_that_is_handed_back_behind_twenty_thousand_is_claimed_next(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    create(ledger, "ant")
    record = claimed(ledger)
    create(ledger, "ant", 10_000)
    create(ledger, "bee", 10_000)
    places = QueuePlaces(redis_client)

    assert ledger.release(record, delay_s=0, charged=False) is Reply.OK

    queued = ledger.read(record.id)
    assert queued is not None
    place = places.of(queued, workers=1)
    assert (place and place.ahead, claimed(ledger).id) == (0, record.id)


def test_a_job_that_a_node_hands_back_for_its_own_fault_is_left_to_the_others_for_a_while(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    create(ledger, "ant", 2)
    faulty = claimed(ledger)
    ledger.release(faulty, delay_s=0, charged=False, avoid_s=30)

    other = claimed(ledger)
    left = claim_next(ledger)
    taken = ledger.claim_next(QUEUES, "another", lease_s=600, max_attempts=3).record

    assert other.id != faulty.id
    assert left.record is None
    assert taken is not None
    assert taken.id == faulty.id
    ledger.release(taken, delay_s=0, charged=False)
    redis_client.hset(f"mf:job:{faulty.id}", "avoid", "1 node")  # the time is over
    assert claimed(ledger).id == faulty.id


def test_a_node_that_leaves_many_jobs_to_others_still_finds_the_next(ledger: Ledger) -> None:
    create(ledger, "ant", 30)
    for record in [claimed(ledger) for _ in range(30)]:
        ledger.release(record, delay_s=0, charged=False, avoid_s=30)
    [waiting] = create(ledger, "bee")

    assert claimed(ledger).id == waiting
    assert claim_next(ledger).record is None


# Bells.


class Fleet:
    """Workers that hear bells, one after another; every job takes one step."""

    def __init__(self, ledger: Ledger, bells: Bells, client: redis.Redis) -> None:
        self.ledger, self.bells, self.client = ledger, bells, client
        self.longest = 0

    def hear(self) -> JobRecord | None:
        """Take a bell as a free worker does: claim, ring for the next, end the job."""
        if self.client.rpop(NORMAL) is None:
            return None
        claim = claim_next(self.ledger)
        if claim.more:
            self.bells.ring(claim.more_in, claim.more)
        self.longest = max(self.longest, cast(int, self.client.llen(NORMAL)))
        if claim.record is not None:
            self.ledger.succeed(claim.record, RESULT)
        return claim.record

    def tick(self) -> None:
        """Ring as the courier does."""
        for queue, jobs in self.ledger.silent_queues().items():
            self.bells.ring(queue, jobs)


@pytest.fixture
def fleet(ledger: Ledger, redis_client: redis.Redis, redis_url: str) -> Fleet:
    return Fleet(ledger, Bells(redis_client, Publisher(SharedSettings(redis_url=redis_url))), redis_client)


def test_a_lost_bell_costs_a_tick_and_no_job_though_as_many_come_as_go(
    fleet: Fleet, ledger: Ledger, redis_client: redis.Redis
) -> None:
    order = create(ledger, "ant", 3000)
    fleet.tick()
    chance = random.Random(5)
    done: list[str] = []
    without_a_bell = 0
    for _ in range(3000):
        order += create(ledger, "ant")
        fleet.bells.ring(NORMAL)
        if chance.random() < 0.1:
            redis_client.rpop(NORMAL)  # a bell is lost
        if chance.random() < 0.01:
            redis_client.delete(NORMAL)  # all are
        record = fleet.hear()
        if record is None:
            without_a_bell += 1
            fleet.tick()
            record = fleet.hear()
        assert record is not None
        done.append(record.id)

    assert without_a_bell > 0
    assert done == order[:3000]
    assert fleet.longest <= MOST_BELLS


def test_bells_lie_few_at_any_depth(fleet: Fleet, ledger: Ledger, redis_client: redis.Redis) -> None:
    for _ in range(100):
        create(ledger, "ant", 10)
        fleet.bells.ring(NORMAL, 10)

    assert redis_client.llen(NORMAL) == MOST_BELLS


def test_bells_beyond_what_waits_find_nothing(fleet: Fleet, ledger: Ledger, redis_client: redis.Redis) -> None:
    [job] = create(ledger)
    for _ in range(2):
        fleet.bells.ring(NORMAL, 5)

    heard = [fleet.hear() for _ in range(cast(int, redis_client.llen(NORMAL)))]

    assert [record.id for record in heard if record] == [job]
    assert fleet.hear() is None
    assert ledger.status(job) is Status.SUCCEEDED


# Places.


@pytest.mark.parametrize("seed", range(8))
def test_a_place_is_how_many_are_claimed_before(seed: int, redis_client: redis.Redis) -> None:
    chance = random.Random(seed)
    weights = {"a": 2.0, "b": 0.5, "c": 3.0}
    ledger, places = Ledger(redis_client, 3600, weights), QueuePlaces(redis_client, weights)
    for _ in range(30):
        create(ledger, chance.choice("abcd"), chance.randint(1, 3))
        if chance.random() < 0.5:
            record = claimed(ledger)
            if chance.random() < 0.3:
                ledger.release(record, delay_s=0, charged=False)
    waiting = waiting_jobs(ledger, redis_client)
    shown = {}
    for record in waiting:
        place = places.of(record, workers=0)
        if place is not None:
            shown[record.id] = place.ahead

    order = []
    while record := claim_next(ledger).record:
        order.append(record.id)

    # A claim of what was handed back is charged to its tenant, which a place does not foresee.
    off = [abs(shown[job] - place) for place, job in enumerate(order)]
    assert len(order) == len(shown)
    assert max(off) <= 6
    assert sum(off) / len(off) < 2


def test_a_place_without_returned_jobs_is_exact(redis_client: redis.Redis) -> None:
    weights = {"a": 2.0, "b": 0.5}
    ledger, places = Ledger(redis_client, 3600, weights), QueuePlaces(redis_client, weights)
    for tenant, jobs in (("a", 20), ("b", 20), ("c", 20), ("d", 3)):
        create(ledger, tenant, jobs)
    tenants_of(ledger, 7)
    waiting = waiting_jobs(ledger, redis_client)
    shown = {record.id: place.ahead for record in waiting if (place := places.of(record, workers=0))}

    order = [claimed(ledger).id for _ in range(len(shown))]

    assert [shown[job] for job in order] == list(range(len(order)))


def test_a_place_among_very_many_tenants_is_extrapolated(ledger: Ledger, redis_client: redis.Redis) -> None:
    for number in range(200):
        create(ledger, f"tenant-{number:03}", 2)
    create(ledger, "zebra", 2)
    # The list orders jobs of one millisecond by their ids.
    order = redis_client.zrange(f"mf:waiting:{NORMAL}:zebra", 0, -1)
    waiting = sorted(ledger.page_of("zebra", limit=2).records, key=lambda record: order.index(record.id))
    places = QueuePlaces(redis_client)

    ahead = [place.ahead for record in waiting if (place := places.of(record, workers=0))]

    assert ahead == [pytest.approx(200, abs=20), pytest.approx(401, abs=30)]


def test_a_backlog_is_what_would_be_claimed_before(ledger: Ledger, redis_client: redis.Redis) -> None:
    create(ledger)
    ledger.succeed(claimed(ledger), RESULT)
    redis_client.hset("mf:totals", f"pace:{NORMAL}", 1000)
    create(ledger, "ant", 1000)
    limit = BacklogLimit(max_wait_s=60, workers=1, more_urgent=(INTERACTIVE,))

    def outcome(tenant: str) -> Created:
        new = NewJobs(tenant, NORMAL, (SPEC,), 600)
        return ledger.create(new, max_in_flight=MANY, idempotency_ttl_s=60, backlog=limit).outcome

    assert (outcome("ant"), outcome("bee")) == (Created.BACKLOG_FULL, Created.CREATED)


# Cost.


def commands_of(client: redis.Redis, call: Callable[[], object]) -> int:
    """Count the commands that Redis runs for a call, those within scripts too."""
    client.config_resetstat()
    call()
    stats = cast("dict[str, dict[str, int]]", client.info("commandstats"))
    return sum(stat["calls"] for name, stat in stats.items() if not name.startswith(("cmdstat_config", "cmdstat_info")))


def test_a_claim_costs_the_same_at_any_depth_and_among_any_number_of_tenants(redis_client: redis.Redis) -> None:
    costs = {}
    for tenants in (1, 100):
        for depth in (10, 1000, 20_000):
            redis_client.flushall()
            ledger = Ledger(redis_client, 3600)
            for number in range(min(tenants, depth)):
                create(ledger, f"tenant-{number}", depth // min(tenants, depth))
            claim_next(ledger)  # which loads the script
            costs[tenants, depth] = commands_of(redis_client, lambda ledger=ledger: claim_next(ledger))

    assert len(set(costs.values())) == 1, costs
    assert set(costs.values()).pop() < 40, costs
