"""A result's files go up side by side: in bounded number and memory, ended by the first failure, the manifest last."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

from maskfleet.jobs.errors import JobError, StoreUnavailable
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile
from maskfleet.jobs.schema.record import AnySpec, Metrics
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store, result_prefix
from maskfleet.worker.attempt import Workbench, attempt_next
from maskfleet.worker.embeddings.job_image import JobImage
from maskfleet.worker.lease import Canceled
from maskfleet.worker.output.artifacts import Artifact, Segmented
from maskfleet.worker.sam.prompts import MaskInputs
from maskfleet.worker.steps import Watch
from maskfleet.worker.uploads import put_all
from tests.faults.proxy import Fault, Mode, Proxy
from tests.waiting import wait_until
from tests.worker.test_attempt import read, upload

AT_ONCE = 16
FAR_AWAY = Fault(Mode.LATENCY, delay_s=0.03)


@pytest.fixture
def way(store_fields: dict[str, str]) -> Iterator[Proxy]:
    """The way to the store, on which faults happen."""
    with Proxy(int(store_fields["s3_endpoint"].rpartition(":")[2])) as way:
        yield way


@pytest.fixture
def far_store(way: Proxy, store_fields: dict[str, str]) -> Store:
    return Store(SharedSettings(**{**store_fields, "s3_endpoint": f"http://127.0.0.1:{way.port}"}))


@pytest.fixture
def prefix() -> str:
    return f"results/ant/{uuid.uuid4().hex}"


class Made:
    """Artifacts that are made one at a time, when they are asked for, and counted."""

    def __init__(self, count: int, size: int = 100) -> None:
        self._count, self._size = count, size
        self.names: list[str] = []

    def __iter__(self) -> Iterator[Artifact]:
        for number in range(self._count):
            self.names.append(f"masks/{number:04}.png")
            yield Artifact(self.names[-1], "image/png", f"{number:08}".encode().ljust(self._size, b"."))


def go_on() -> None:
    """Never stop."""


def stored(store: Store, prefix: str) -> list[str]:
    return [found.key.removeprefix(f"{prefix}/") for found in store.listed(f"{prefix}/")]


def test_three_hundred_files_are_many_requests_at_once_and_stay_in_their_order(
    way: Proxy, far_store: Store, store: Store, prefix: str
) -> None:
    made = Made(300)
    way.set(FAR_AWAY)

    files = put_all(made, prefix, far_store, go_on, at_once=AT_ONCE)

    assert [file.name for file in files] == made.names == stored(store, prefix)
    for file in (files[0], files[150], files[299]):
        data = store.read(file.key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    assert way.requests == 300
    assert 1 < way.most_under_way <= AT_ONCE


def test_as_many_go_up_at_once_as_may_and_no_more_is_made(
    way: Proxy, far_store: Store, store: Store, prefix: str
) -> None:
    made = Made(40)
    way.set(Fault(Mode.BLACKHOLE))  # so that each request is under way until the end of it
    with ThreadPoolExecutor(1) as beside:
        files = beside.submit(put_all, made, prefix, far_store, go_on, at_once=AT_ONCE)
        wait_until(lambda: way.under_way == AT_ONCE)

        assert len(made.names) == AT_ONCE
        way.heal()
        assert len(files.result()) == 40

    assert way.most_under_way == AT_ONCE


def test_the_bytes_under_way_are_bounded_but_for_one_object(
    way: Proxy, far_store: Store, store: Store, prefix: str
) -> None:
    made = Made(20, size=300_000)
    way.set(Fault(Mode.BLACKHOLE))
    with ThreadPoolExecutor(1) as beside:
        files = beside.submit(put_all, made, prefix, far_store, go_on, at_once=AT_ONCE, bytes_under_way=1_000_000)
        wait_until(lambda: way.under_way == 4)  # with three there was room for one more

        assert len(made.names) == 4
        way.heal()
        assert len(files.result()) == 20

    assert way.most_under_way == 4


def test_an_object_larger_than_all_that_may_be_under_way_goes_up_alone(
    way: Proxy, far_store: Store, prefix: str
) -> None:
    files = put_all(Made(3, size=5000), prefix, far_store, go_on, at_once=AT_ONCE, bytes_under_way=1000)

    assert len(files) == 3
    assert way.most_under_way == 1


def test_a_stop_while_uploads_hang_is_heeded_and_nothing_is_written_after_it(
    way: Proxy, far_store: Store, store: Store, prefix: str
) -> None:
    stop: list[Canceled] = []

    def check() -> None:
        for reason in stop:
            raise reason

    made = Made(40)
    way.set(Fault(Mode.BLACKHOLE))
    with ThreadPoolExecutor(1) as beside:
        files: Future[tuple[ManifestFile, ...]] = beside.submit(put_all, made, prefix, far_store, check, at_once=4)
        wait_until(lambda: way.under_way == 4)

        stop.append(Canceled())
        way.heal()

        with pytest.raises(Canceled):
            files.result()
    assert way.under_way == 0
    assert len(made.names) < 40


class _MakingFails(Exception):
    pass


def test_what_goes_wrong_as_a_file_is_made_is_raised_once_the_others_are_written(
    far_store: Store, store: Store, prefix: str
) -> None:
    def made() -> Iterator[Artifact]:
        yield from Made(3)
        raise _MakingFails

    with pytest.raises(_MakingFails):
        put_all(made(), prefix, far_store, go_on, at_once=AT_ONCE)

    assert len(stored(store, prefix)) == 3


@pytest.fixture
def many(bench: Workbench, far_store: Store) -> tuple[Workbench, Made]:
    """A workbench behind the proxy, whose model finds three hundred masks, and its files."""
    made = Made(300)

    def segment(photo: JobImage, spec: AnySpec, watch: Watch, mask_inputs: MaskInputs) -> Segmented:
        return Segmented((), Metrics(points=1, points_per_batch=1), iter(made))

    return replace(bench, segment=segment, store=far_store), made


def test_a_job_writes_its_manifest_when_all_its_files_are_there(
    many: tuple[Workbench, Made], way: Proxy, store: Store, coins: bytes
) -> None:
    bench, made = many
    there: list[int] = []
    job_id = upload(replace(bench, store=store), coins)
    folder = result_prefix("ant", job_id)
    way.set(FAR_AWAY)
    way.watch(
        b"manifest.json", lambda: there.append(len(stored(store, folder)))
    )  # and break the connection: it is repeated

    attempt_next(bench)

    assert read(bench, job_id).status is Status.SUCCEEDED
    assert there == [300]
    manifest = Manifest.model_validate_json(store.read(f"{folder}/manifest.json"))
    assert [file.name for file in manifest.files] == made.names


def test_a_store_that_fails_midway_hands_the_job_back_without_a_manifest(
    many: tuple[Workbench, Made], way: Proxy, store: Store, coins: bytes
) -> None:
    bench, made = many
    noted: list[JobError | None] = []
    job_id = upload(replace(bench, store=store), coins)
    way.watch(b"masks/0150.png", lambda: way.set(Fault(Mode.RESET)))

    attempt_next(bench, noted.append)

    assert isinstance(noted[0], StoreUnavailable)
    record = read(bench, job_id)
    assert (record.status, record.attempt) == (Status.QUEUED, 0)
    assert 150 < len(made.names) < 300  # nothing more was made
    assert way.under_way == 0  # or sent
    assert not [name for name in stored(store, result_prefix("ant", job_id)) if name == "manifest.json"]
