"""Two versions beside each other on one ledger, as during a rolling upgrade or after a rollback.

The newer one has one more field in every model: of specs, records, results, manifests, events and responses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from maskfleet import Client
from maskfleet.jobs.storage import manifest_key
from maskfleet.stack.servers import free_port
from tests.faults.history import Notified
from tests.faults.laboratory import API_KEY, ROOT, STAND_IN, TENANT, Laboratory
from tests.newer_version import NEW_FIELD, make_newer_version
from tests.scenes import plain_scene
from tests.waiting import wait_until

NODE = "node-stand-in-1"
GUNICORN = str(Path(sys.executable).parent / "gunicorn")
API = (GUNICORN, "--config", "python:maskfleet.api.server", "maskfleet.api.app:create_app()")
#: What a caller of the newer version may send.
NEW = {NEW_FIELD: "set by the caller"}


@dataclass(frozen=True)
class Versions:
    """The API of both versions, and the node and courier of either."""

    lab: Laboratory
    newer: Path
    apis: Mapping[str, str]

    @contextmanager
    def working(self, *, node: str, courier: str) -> Iterator[None]:
        """Run the node of one version and the courier of one."""
        folders = {"ours": ROOT, "newer": self.newer}
        stand_in = (sys.executable, "-m", "tests.faults.stand_in")
        programs = [
            self.lab.add(NODE, stand_in, folder=folders[node], MASKFLEET_NODE=NODE, MASKFLEET_MODEL=f"./{STAND_IN}"),
            self.lab.add(
                "courier-1", (sys.executable, "-m", "maskfleet.worker.courier.courier"), folder=folders[courier]
            ),
        ]
        try:
            yield
        finally:
            for program in programs:
                program.kill()

    def submit(self, api: str, path: str = "/v1/jobs", **fields: Any) -> str:
        upload = self.lab.store.put_upload(TENANT, plain_scene(3, (160, 128)).png, "image/png")
        image = {"upload_id": upload}
        body = {"mode": "box", "prompts": [{"box": [20, 20, 80, 80]}], "model": STAND_IN, "image": image, **fields}
        if path == "/v1/batches":
            body["images"] = [body.pop("image")] * 2
        headers = {"Authorization": f"Bearer {API_KEY}"}
        answer = requests.post(self.apis[api] + path, json=body, headers=headers, timeout=30)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def client(self, api: str) -> Client:
        return Client(self.apis[api], API_KEY)

    def told(self, job: str) -> list[Notified]:
        return [sight for sight in self.lab.history.read() if isinstance(sight, Notified) and sight.job == job]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Versions]:
    folder = tmp_path_factory.mktemp("versions")
    newer = make_newer_version(folder / "newer")
    with Laboratory(folder / "laboratory", nodes=0, stand_ins=1, programs=False) as lab:
        apis = {}
        for name, code in (("ours", ROOT), ("newer", newer)):
            port = free_port()
            lab.redis_ways[f"api-{name}"] = lab.redis_ways["api"]
            lab.add(
                f"api-{name}",
                API,
                folder=code,
                MASKFLEET_BIND=f"127.0.0.1:{port}",
                MASKFLEET_PROCESSES="1",
                MASKFLEET_MODELS=STAND_IN,
            )
            apis[name] = f"http://127.0.0.1:{port}"
        for url in apis.values():
            wait_until(lambda url=url: _is_ready(url), 60, every_s=0.1)  # type: ignore[misc]
        yield Versions(lab, newer, apis)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/ready", timeout=3).status_code == 200
    except requests.RequestException:
        return False


def test_what_a_newer_api_recorded_is_run_listed_told_of_and_fetched_by_this_version(
    versions: Versions, tmp_path: Path
) -> None:
    hook = {"url": versions.lab.receiver.url, **NEW}
    job = versions.submit("newer", webhook=hook, metadata={"order": "7"}, params=NEW, **NEW)
    with versions.working(node="ours", courier="ours"), versions.client("ours") as client:
        assert client.wait(job, timeout_s=60).status == "succeeded"
        wait_until(lambda: versions.told(job), 30)

        listed = {one.id: one for one in client.jobs()}
        assert listed[job].metadata == {"order": "7"}
        assert client.fetch(job, tmp_path).masks
        assert [(sight.event, sight.signed_for) for sight in versions.told(job)] == [("job.succeeded", TENANT)]


def test_what_a_newer_node_and_courier_wrote_is_read_by_this_version(versions: Versions, tmp_path: Path) -> None:
    job = versions.submit("ours", webhook={"url": versions.lab.receiver.url})
    with versions.working(node="newer", courier="newer"), versions.client("ours") as client:
        assert client.wait(job, timeout_s=60).status == "succeeded"
        wait_until(lambda: versions.told(job), 30)
        assert NEW_FIELD in versions.lab.store.read(manifest_key(TENANT, job)).decode()
        assert NEW_FIELD in versions.lab.redis.hget(f"mf:job:{job}", "result")

        assert job in {one.id for one in client.jobs()}
        assert [one.state for one in client.deliveries(job)] == ["delivered"]
        assert [sight.signed_for for sight in versions.told(job)] == [TENANT]
        client.fetch(job, tmp_path)

    # What this version does not know is passed on, not lost.
    assert NEW_FIELD in (tmp_path / "manifest.json").read_text()


def test_this_versions_client_understands_a_newer_api(versions: Versions, tmp_path: Path) -> None:
    with versions.working(node="newer", courier="ours"), versions.client("newer") as client:
        batch = versions.submit("newer", "/v1/batches", **NEW)
        [job, other] = client.batch(batch).job_ids
        watched = list(client.watch(job, timeout_s=60))
        client.wait(other, timeout_s=60)

        assert watched[-1].status == "succeeded"
        assert {job, other} <= {one.id for one in client.jobs()}
        assert client.fetch(job, tmp_path).masks
        assert STAND_IN in client.models()
        ping = client.ping_webhook(versions.lab.receiver.url)
        assert ping.delivery.url == versions.lab.receiver.url


def test_a_batch_of_a_newer_version_is_run_and_shown_by_this_one(versions: Versions) -> None:
    batch = versions.submit("newer", "/v1/batches", params=NEW, **NEW)
    with versions.working(node="ours", courier="ours"), versions.client("ours") as client:
        assert {client.wait(job, timeout_s=60).status for job in client.batch(batch).job_ids} == {"succeeded"}
        assert client.batch(batch).status == "completed"


def test_the_door_stays_strict(versions: Versions) -> None:
    body = {"mode": "everything", "image": {"upload_id": f"upl_{'0' * 32}"}, "params": NEW}
    headers = {"Authorization": f"Bearer {API_KEY}"}

    answer = requests.post(f"{versions.apis['ours']}/v1/jobs", json=body, headers=headers, timeout=30)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [f"/params/{NEW_FIELD}"]
