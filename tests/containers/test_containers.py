"""The images of the repository's Dockerfiles, run as docker-compose.yml says: a job, and workers that are lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskfleet import Client
from maskfleet.client.submission import JobFields
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.status import Status
from tests.containers.conftest import API_URL
from tests.containers.engine import Engine
from tests.containers.services import Services
from tests.waiting import wait_until

COINS = Path(__file__).parents[2] / "examples" / "coins.png"
#: Seconds of a worker's time.
LONG: JobFields = {"mode": "everything", "params": {"points_per_crop": 128}}
#: Of the worker, in the compose file.
LEASE_S = WorkerSettings.model_fields["lease_s"].default
WORKERS = 3


@pytest.fixture(scope="module")
def three_workers(services: Services) -> None:
    for number in range(2, WORKERS + 1):
        services.start("worker", number)


def nodes(engine: Engine, services: Services) -> dict[str, str]:
    """Return the workers' containers by their nodes: a container's host is named after its id."""
    names = [services.container("worker", number) for number in range(1, WORKERS + 1)]
    return {f"sam-cpu@{engine.podman('exec', name, 'hostname')}": name for name in names}


def running(client: Client, job_id: str) -> JobView | None:
    job = client.get(job_id)
    assert not job.ended, "it ended before anything happened to its worker"
    return job if job.attempts and job.status is Status.PROCESSING else None


def test_programs_run_without_root_and_the_apis_image_holds_no_torch(engine: Engine, services: Services) -> None:
    users = [engine.podman("exec", services.container(name), "id", "-u") for name in ("api", "worker", "courier")]
    find = "import importlib.util as u; print(*(n for n in ('torch', 'numpy', 'flask') if u.find_spec(n)))"
    found = engine.podman("exec", services.container("api"), "python", "-c", find)

    assert users == ["10001"] * 3
    assert found == "flask"


def test_a_job_from_outside_comes_back_as_files(client: Client, tmp_path: Path) -> None:
    job = client.submit(photo=COINS, mode="everything", outputs=["coco", "png", "overlay"])
    ended = client.wait(job.id, timeout_s=120)
    client.fetch(job.id, tmp_path)

    assert ended.status is Status.SUCCEEDED
    assert ended.result is not None
    assert {path.name for path in tmp_path.iterdir()} >= {"manifest.json", "coco.json", "overlay.png"}
    assert len(list(tmp_path.rglob("*.png"))) == ended.result.masks + 1
    assert ended.result.masks > 20


def test_an_operator_makes_a_key_that_works_at_once(services: Services) -> None:
    told = services.run_once("operator", "keys", "create", "--tenant", "apiary", "--scope", "jobs:read")
    key = next(word for word in told.split() if word.startswith("mf_"))

    with Client(API_URL, key) as apiary:
        assert list(apiary.jobs()) == []


@pytest.mark.usefixtures("three_workers")
def test_a_killed_container_costs_no_job(client: Client, engine: Engine, services: Services) -> None:
    of_nodes = nodes(engine, services)
    long = client.submit(photo=COINS, **LONG)
    others = [client.submit(photo=COINS, mode="everything") for _ in range(12)]
    struck = wait_until(lambda: running(client, long.id), 60, every_s=0.1)
    assert struck.attempts
    node = struck.attempts[-1].worker

    engine.podman("kill", "--signal=KILL", of_nodes[node])

    ends = [client.wait(job.id, timeout_s=180) for job in (long, *others)]
    assert [end.status for end in ends] == [Status.SUCCEEDED] * 13
    assert ends[0].attempts
    assert [attempt.outcome for attempt in ends[0].attempts] == ["lease_ran_out", "succeeded"]
    assert len({end.result.masks for end in ends[1:] if end.result}) == 1
    engine.podman("start", of_nodes[node])


@pytest.mark.usefixtures("three_workers")
def test_a_worker_that_is_cut_off_loses_its_job_and_comes_back(
    client: Client, engine: Engine, services: Services
) -> None:
    names = [services.container("worker", number) for number in range(1, WORKERS + 1)]
    wait_until(lambda: client.fleet("sam-demo").workers.idle == WORKERS, 180, every_s=1)
    of_nodes = nodes(engine, services)
    job = client.submit(photo=COINS, **LONG)
    struck = wait_until(lambda: running(client, job.id), 60, every_s=0.1)
    assert struck.attempts
    node = struck.attempts[-1].worker
    cut_off = of_nodes[node]

    engine.podman("network", "disconnect", services.network, cut_off)
    ended = client.wait(job.id, timeout_s=3 * LEASE_S + 120)
    engine.podman("network", "connect", "--alias=worker", services.network, cut_off)

    assert ended.status is Status.SUCCEEDED
    assert ended.attempts
    assert [attempt.outcome for attempt in ended.attempts] == ["lease_ran_out", "succeeded"]
    assert ended.attempts[1].worker != node
    # It works again: with the other two stopped, it is the only one left.
    for name in names:
        if name != cut_off:
            engine.podman("stop", name)
    again = client.wait(client.submit(photo=COINS, mode="everything").id, timeout_s=120)
    assert (again.status, again.attempts and again.attempts[-1].worker) == (Status.SUCCEEDED, node)


def test_a_worker_that_is_stopped_finishes_its_job_first(client: Client, engine: Engine, services: Services) -> None:
    (name,) = engine.podman("ps", "--format={{.Names}}", "--filter=name=worker").split()
    job = client.submit(photo=COINS, **LONG)
    wait_until(lambda: running(client, job.id), 60, every_s=0.1)

    engine.podman("stop", name, timeout_s=400)

    ended = client.get(job.id)
    assert ended.status is Status.SUCCEEDED
    assert ended.attempt == 1
    assert engine.podman("inspect", "--format={{.State.ExitCode}}", name) == "0"
