"""The sweep on a real S3 and a real Redis: what is removed, what stays, and that only one runs at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from maskfleet.jobs.errors import Conflict, StoreUnavailable
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.sweeps import SweepTurns
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile
from maskfleet.jobs.schema.record import JobRecord, Metrics, ResultSummary
from maskfleet.jobs.settings import CourierSettings, SharedSettings
from maskfleet.jobs.storage import (
    ListedObject,
    Store,
    attempt_prefix,
    embedding_key,
    manifest_key,
    source_key,
    upload_key,
)
from maskfleet.worker.courier.sweep import Sweep
from tests import taking
from tests.jobs.commands import counted_commands
from tests.waiting import wait_until
from tests.worker.test_courier import courier

SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"}}'
GONE = "job_" + "f" * 32


@pytest.fixture
def empty_store(store: Store) -> Store:
    """The test run's store without results of other tests, and what they knew of images."""
    for folder in ("results/", "batches/", "embeddings/"):
        store.delete(found.key for found in store.listed(folder))
    return store


def sweep_of(client: redis.Redis, store: Store, *, retention_s: float = 0, grace_s: float = 0) -> Sweep:
    ledger, turns = Ledger(client, int(retention_s)), SweepTurns(client)
    batches = Batches(client)
    return Sweep(ledger, turns, store, batches=batches, retention_s=retention_s, grace_s=grace_s)


@pytest.fixture
def sweep(redis_client: redis.Redis, empty_store: Store) -> Sweep:
    """A sweep without retention or grace period."""
    return sweep_of(redis_client, empty_store)


def create(ledger: Ledger) -> str:
    job = NewJobs(tenant="ant", queue="sam.m.normal", specs_json=(SPEC,), start_deadline_s=60)
    return ledger.create(job, max_in_flight=100, idempotency_ttl_s=60).id


def claim(ledger: Ledger, job_id: str) -> JobRecord:
    record = taking.claim(ledger, job_id, "node-1", lease_s=30, max_attempts=3)
    assert record is not None
    return record


def write_attempt(store: Store, record: JobRecord) -> list[str]:
    """Write what an attempt writes before its manifest; return the keys."""
    keys = [f"{_folder(record)}/{name}" for name in ("coco.json", "masks/0000.png", "masks/0001.png")]
    for key in keys:
        store.put(key, b"bytes", "application/octet-stream")
    return keys


def write_manifest(store: Store, record: JobRecord) -> str:
    """Write the manifest of an attempt; return its key."""
    folder = f"{_folder(record)}/"
    manifest = Manifest(
        job_id=record.id,
        attempt=record.attempt,
        mode="everything",
        model="m",
        created_at="2026-01-01T00:00:00Z",
        image_width=1,
        image_height=1,
        masks=(),
        files=tuple(
            ManifestFile(
                name=found.key.removeprefix(folder), key=found.key, size=5, sha256="0" * 64, content_type="a/b"
            )
            for found in store.listed(folder)
        ),
        metrics=Metrics(),
    )
    key = manifest_key("ant", record.id)
    store.put_once(key, manifest.model_dump_json().encode(), "application/json")
    return key


def succeed(ledger: Ledger, record: JobRecord) -> None:
    ledger.succeed(record, ResultSummary(prefix="p/", manifest_key="m", masks=0, best_score=None, metrics=Metrics()))


def results(store: Store) -> list[str]:
    return sorted(found.key for found in store.listed("results/"))


def _folder(record: JobRecord) -> str:
    return attempt_prefix("ant", record.id, record.attempt, record.fence, record.token)


def test_what_is_known_of_images_goes_when_records_of_its_age_do(redis_client: redis.Redis, empty_store: Store) -> None:
    keys = [embedding_key("ant", "1" * 32, "a" * 64), source_key("ant", "upload:upl_1")]
    for key in keys:
        empty_store.put(key, b"bytes", "application/octet-stream")

    young = list(sweep_of(redis_client, empty_store, retention_s=3600).run())
    shown = list(sweep_of(redis_client, empty_store).run(dry_run=True))
    [swept] = wait_until(lambda: list(sweep_of(redis_client, empty_store).run()))

    assert young == []
    assert [leftover.folder for leftover in shown] in ([], ["embeddings/"])
    assert sorted(item.key for item in swept.objects) == sorted(keys)
    assert list(empty_store.listed("embeddings/")) == []


def test_an_attempt_that_lost_goes_and_the_one_that_counts_stays(
    sweep: Sweep, ledger: Ledger, empty_store: Store
) -> None:
    job_id = create(ledger)
    frozen = claim(ledger, job_id)
    lost = write_attempt(empty_store, frozen)
    ledger.release(frozen, delay_s=0, charged=True)
    winner = claim(ledger, job_id)
    kept = [*write_attempt(empty_store, winner), write_manifest(empty_store, winner)]
    succeed(ledger, winner)

    (leftover,) = sweep.run()

    assert sorted(found.key for found in leftover.objects) == lost
    assert results(empty_store) == sorted(kept)
    assert list(sweep.run()) == []


@pytest.mark.parametrize("end", ["failed", "canceled"])
def test_what_a_job_without_a_result_wrote_goes(sweep: Sweep, ledger: Ledger, empty_store: Store, end: str) -> None:
    record = claim(ledger, create(ledger))
    write_attempt(empty_store, record)
    if end == "failed":
        ledger.fail(record, "x", "y")
    else:
        ledger.finish_canceled(record)

    assert len(list(sweep.run())) == 1
    assert results(empty_store) == []


def test_a_result_that_a_retry_will_find_stays(sweep: Sweep, ledger: Ledger, empty_store: Store) -> None:
    record = claim(ledger, create(ledger))
    kept = [*write_attempt(empty_store, record), write_manifest(empty_store, record)]
    ledger.fail(record, "attempts_exhausted", "It died before it could say that it was done.")

    assert list(sweep.run()) == []
    assert results(empty_store) == sorted(kept)


class LateListing(Store):
    """A store whose listings do not show manifests yet."""

    def listed(self, prefix: str) -> Iterator[ListedObject]:
        return (found for found in super().listed(prefix) if not found.key.endswith("/manifest.json"))


def test_a_result_whose_manifest_is_not_listed_yet_stays(
    ledger: Ledger, empty_store: Store, shared_fields: dict[str, str], redis_client: redis.Redis
) -> None:
    job_id = create(ledger)
    frozen = claim(ledger, job_id)
    lost = write_attempt(empty_store, frozen)
    ledger.release(frozen, delay_s=0, charged=True)
    winner = claim(ledger, job_id)
    kept = [*write_attempt(empty_store, winner), write_manifest(empty_store, winner)]
    succeed(ledger, winner)

    (leftover,) = sweep_of(redis_client, LateListing(SharedSettings(**shared_fields))).run()

    assert sorted(found.key for found in leftover.objects) == lost
    assert results(empty_store) == sorted(kept)


def test_of_a_succeeded_job_without_a_manifest_nothing_goes(sweep: Sweep, ledger: Ledger, empty_store: Store) -> None:
    record = claim(ledger, create(ledger))
    kept = write_attempt(empty_store, record)
    succeed(ledger, record)

    assert list(sweep.run()) == []
    assert results(empty_store) == sorted(kept)


def test_records_are_asked_for_many_at_once(
    sweep: Sweep, ledger: Ledger, empty_store: Store, redis_client: redis.Redis
) -> None:
    for number in range(50):
        empty_store.put(f"results/ant/job_{number:032x}/attempt-1-1/coco.json", b"{}", "application/json")

    with counted_commands(redis_client) as commands:
        assert len(list(sweep.run())) == 50

    assert commands["time"] == 1


def test_nothing_of_a_job_that_is_queued_or_running_goes(sweep: Sweep, ledger: Ledger, empty_store: Store) -> None:
    queued, running, retried = (claim(ledger, create(ledger)) for _ in range(3))
    kept = [key for record in (queued, running, retried) for key in write_attempt(empty_store, record)]
    ledger.release(queued, delay_s=0, charged=True)
    ledger.fail(retried, "x", "y")
    ledger.retry(retried.id, "ant", start_deadline_s=60, max_in_flight=9)

    assert list(sweep.run()) == []
    assert results(empty_store) == sorted(kept)


def test_the_results_of_a_job_whose_record_is_gone_go(
    sweep: Sweep, ledger: Ledger, empty_store: Store, redis_client: redis.Redis
) -> None:
    record = claim(ledger, create(ledger))
    write_attempt(empty_store, record)
    write_manifest(empty_store, record)
    succeed(ledger, record)
    redis_client.delete(f"mf:job:{record.id}")  # as on its expiry

    (leftover,) = sweep.run()

    assert (leftover.folder, leftover.size > 15) == (f"results/ant/{record.id}/", True)
    assert results(empty_store) == []


@pytest.mark.parametrize(("retention_s", "grace_s"), [(0, 3600), (3600, 0)])
def test_nothing_goes_within_the_grace(
    redis_client: redis.Redis, ledger: Ledger, empty_store: Store, retention_s: float, grace_s: float
) -> None:
    empty_store.put(f"results/ant/{GONE}/attempt-1-1/coco.json", b"of a job that Redis lost", "a/b")
    sweep = sweep_of(redis_client, empty_store, retention_s=retention_s, grace_s=grace_s)
    ended = claim(ledger, create(ledger))
    write_attempt(empty_store, ended)
    ledger.fail(ended, "x", "y")

    gone = [leftover.folder for leftover in sweep.run()]

    # The retention is over when the record expires, so an ended job only waits for the grace period.
    assert gone == ([] if grace_s else [f"results/ant/{ended.id}/"])
    assert f"results/ant/{GONE}/attempt-1-1/coco.json" in results(empty_store)


def test_what_is_not_a_jobs_result_is_not_touched(sweep: Sweep, empty_store: Store) -> None:
    strangers = ["results/notes.txt", "results/ant/notes.txt", f"results/ant/{GONE}x/a", "results/ant/job_1/a"]
    for key in [*strangers, upload_key("ant", "upl_" + "1" * 32), "photos/bee.jpg"]:
        empty_store.put(key, b"mine", "text/plain")

    assert list(sweep.run()) == []
    assert results(empty_store) == sorted(strangers)
    assert empty_store.head(upload_key("ant", "upl_" + "1" * 32)) is not None


def test_a_manifest_that_is_not_understood_keeps_everything(sweep: Sweep, ledger: Ledger, empty_store: Store) -> None:
    job_id = create(ledger)
    first = claim(ledger, job_id)
    write_attempt(empty_store, first)
    ledger.release(first, delay_s=0, charged=True)
    second = claim(ledger, job_id)
    write_attempt(empty_store, second)
    empty_store.put(manifest_key("ant", job_id), b'{"of": "a later version"}', "application/json")
    succeed(ledger, second)

    assert list(sweep.run()) == []
    assert len(results(empty_store)) == 7


def test_a_dry_run_tells_and_removes_nothing(sweep: Sweep, empty_store: Store) -> None:
    empty_store.put(f"results/ant/{GONE}/attempt-1-1/coco.json", b"12345", "a/b")

    (told,) = sweep.run(dry_run=True)

    assert (told.folder, told.size) == (f"results/ant/{GONE}/", 5)
    assert len(results(empty_store)) == 1


def test_one_sweep_runs_at_a_time(sweep: Sweep, empty_store: Store, redis_client: redis.Redis) -> None:
    for job in ("1", "2"):
        empty_store.put(f"results/ant/job_{job * 32}/attempt-1-1/coco.json", b"1", "a/b")
    first = sweep.run()
    next(first)

    with pytest.raises(Conflict, match="sweep_under_way"):
        next(sweep.run())
    assert len(list(sweep.run(dry_run=True))) == 1
    assert 0 < redis_client.pttl("mf:sweep") <= 120_000

    assert len(list(first)) == 1
    assert list(sweep.run()) == []


def test_it_is_the_turn_of_one_alone_and_of_the_next_when_the_time_has_come(sweep: Sweep) -> None:
    assert [sweep.is_due(0.05) for _ in range(3)] == [True, False, False]
    wait_until(lambda: sweep.is_due(0.05))


def test_a_sweep_ends_early_when_its_program_does(sweep: Sweep, empty_store: Store) -> None:
    for job in ("1", "2", "3"):
        empty_store.put(f"results/ant/job_{job * 32}/attempt-1-1/coco.json", b"1", "a/b")
    over = threading.Event()

    for _ in sweep.run(is_over=over.is_set):
        over.set()

    assert len(results(empty_store)) == 2
    over.clear()
    assert len(list(sweep.run(is_over=over.is_set))) == 2


def test_more_objects_than_a_page_are_all_removed(empty_store: Store) -> None:
    folder = f"results/ant/{GONE}/"
    threads = [
        threading.Thread(
            target=lambda first: [empty_store.put(f"{folder}{n:04}", b"", "a/b") for n in range(first, first + 251)],
            args=(first,),
        )
        for first in range(0, 1004, 251)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    empty_store.put(f"results/ant/{GONE}x/a", b"a neighbour", "a/b")

    assert empty_store.delete_prefix(folder) == 1004
    assert results(empty_store) == [f"results/ant/{GONE}x/a"]
    assert empty_store.delete_prefix(folder) == 0


@pytest.mark.parametrize("folder", ["", "/", "results/", "results/ant/job_1"])
def test_the_store_removes_no_folder_but_a_jobs_own(empty_store: Store, folder: str) -> None:
    with pytest.raises(ValueError, match="one job's folder"):
        empty_store.delete_prefix(folder)


def test_a_courier_sweeps_when_it_is_its_turn(
    redis_client: redis.Redis, redis_url: str, store_fields: dict[str, str], empty_store: Store, ledger: Ledger
) -> None:
    record = claim(ledger, create(ledger))
    write_attempt(empty_store, record)
    ledger.fail(record, "x", "y")

    with courier(redis_url, sweep_s=0.1, sweep_grace_s=0, **store_fields):
        wait_until(lambda: results(empty_store) == [])
        again = claim(ledger, create(ledger))
        write_attempt(empty_store, again)
        ledger.fail(again, "x", "y")
        wait_until(lambda: results(empty_store) == [])


def test_a_courier_outlives_a_store_that_is_away(redis_url: str, ledger: Ledger, redis_client: redis.Redis) -> None:
    nowhere = {"s3_endpoint": "http://127.0.0.1:1", "s3_access_key": "a", "s3_secret_key": "b"}
    with pytest.raises(StoreUnavailable):
        list(sweep_of(redis_client, Store(SharedSettings(**nowhere))).run())

    with courier(redis_url, sweep_s=0.1, **nowhere):
        wait_until(lambda: redis_client.exists("mf:swept"))
        create(ledger)
        wait_until(lambda: redis_client.llen("sam.m.normal") == 1)


@pytest.fixture
def command(redis_url: str, store_fields: dict[str, str]) -> Callable[..., str]:
    settings = {"redis_url": redis_url, **store_fields, "sweep_grace_s": "0", "retention_s": "60"}

    def run(*options: str) -> str:
        environment = {f"MASKFLEET_{name.upper()}": value for name, value in settings.items()}
        return subprocess.run(
            [sys.executable, "-m", "maskfleet", "sweep", *options],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    return run


def test_the_command_tells_what_it_would_remove_and_then_does(
    command: Callable[..., str], ledger: Ledger, empty_store: Store
) -> None:
    record = claim(ledger, create(ledger))
    write_attempt(empty_store, record)
    ledger.fail(record, "x", "y")

    as_json = json.loads(command("--dry-run", "--json"))
    told = command("--dry-run")
    before = results(empty_store)
    done = command()

    line = f"results/ant/{record.id}/  3 objects, 15 bytes: not part of the job's result\n"
    assert told == f"{line}3 objects, 15 bytes would be removed.\n"
    assert done == f"{line}3 objects, 15 bytes were removed.\n"
    assert (as_json["objects"], as_json["bytes"], as_json["removed"]) == (3, 15, False)
    assert (len(before), results(empty_store)) == (3, [])


def test_a_sweep_needs_no_more_than_the_courier_has() -> None:
    code = "import sys, maskfleet.worker.courier.sweep; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"torch", "numpy", "flask"} & set(loaded)
    assert CourierSettings().sweep_s == 3600


def test_what_was_collected_of_a_batch_goes_with_its_record(empty_store: Store, redis_client: redis.Redis) -> None:
    kept, gone = (f"batches/ant/batch_{digit * 32}/" for digit in "ab")
    for folder in (kept, gone):
        empty_store.put(f"{folder}coco-1.json", b"{}", "application/json")
        empty_store.put(f"{folder}pages/1/outcomes.jsonl", b"{}", "application/jsonl")
    counts = dict.fromkeys(("queued", "processing", "succeeded", "failed", "canceled", "expired"), 0)
    record = {"tenant": "ant", "created_ms": 1, "ends": 0, "metadata": "{}", **counts}
    redis_client.hset(f"mf:batch:batch_{'a' * 32}", mapping=record)

    young = list(sweep_of(redis_client, empty_store, grace_s=3600).run())
    [old] = sweep_of(redis_client, empty_store).run()

    assert young == []
    assert (old.folder, len(old.objects)) == (gone, 2)
    assert [item.key for item in empty_store.listed("batches/")] == [
        f"{kept}coco-1.json",
        f"{kept}pages/1/outcomes.jsonl",
    ]
