"""What a request costs, and what a tenant can fill, whatever has ended before and however large the fleet is."""

from __future__ import annotations

from typing import Any, cast

import pytest
import redis

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import MAX_LOOKED_AT, Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from tests.api.caller import Caller, check_problem, claim, job
from tests.api.conftest import KEYS, MODEL, SettingsMaker
from tests.jobs.commands import counted_commands

IMAGE = {"s3_uri": "s3://photos/bee.jpg"}


def big_job(prompts: int = 1000) -> dict[str, Any]:  # Any: JSON
    """Return the body of a job whose spec takes some 140 bytes for each prompt."""
    prompt = {"points": [[number * 10 + 0.123456789, 1.123456789] for number in range(4)], "labels": [1, 0, 1, 0]}
    return job(image=IMAGE, mode="point", prompts=[prompt] * prompts)


def bytes_out(client: redis.Redis) -> int:
    return int(cast("dict[str, int]", client.info("stats"))["total_net_output_bytes"])


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/{id}", "/v1/models", "/metrics"])
def test_a_request_costs_the_same_for_any_number_of_workers(
    apiary: Caller, worker_registry: WorkerRegistry, redis_client: redis.Redis, path: str
) -> None:
    waiting = apiary.a_job(image=IMAGE)

    def ask() -> None:
        if path == "/v1/jobs":
            assert apiary.send(job(image=IMAGE)).status_code == 202
        else:
            assert apiary.get(path.format(id=waiting)).status_code == 200

    worker_registry.announce(WorkerSeen("sam-cpu@host-0", MODEL, "cpu", 1, 0))
    ask()  # loads its scripts
    with counted_commands(redis_client) as with_one:
        ask()
    for number in range(1, 200):
        worker_registry.announce(WorkerSeen(f"sam-cpu@host-{number}", MODEL, "cpu", 1, 0))
    with counted_commands(redis_client) as with_many:
        ask()

    assert with_many == with_one


def test_a_list_costs_the_same_whatever_has_expired_and_forgets_it(apiary: Caller, redis_client: redis.Redis) -> None:
    listed = [apiary.a_job(image=IMAGE) for _ in range(3)]
    expired = 5 * MAX_LOOKED_AT
    redis_client.zadd("mf:jobs:apiary", {f"job_{number:032x}": 1.7e12 + number for number in range(expired)})
    apiary.get("/v1/jobs")  # loads its script

    with counted_commands(redis_client) as commands:
        page = apiary.get("/v1/jobs").json

    assert sum(commands.values()) <= MAX_LOOKED_AT + 100
    seen = {shown["id"] for shown in page["jobs"]}
    while page["next"]:
        page = apiary.get(page["next"]).json
        seen |= {shown["id"] for shown in page["jobs"]}
    assert seen == set(listed)
    assert redis_client.zcard("mf:jobs:apiary") == 3


def test_a_list_of_one_state_moves_only_what_it_shows(apiary: Caller, redis_client: redis.Redis) -> None:
    jobs = [apiary.send(big_job()).json["id"] for _ in range(20)]
    apiary.post(f"/v1/jobs/{jobs[0]}/cancel")
    before = bytes_out(redis_client)

    page = apiary.get("/v1/jobs?status=canceled").json

    assert [shown["id"] for shown in page["jobs"]] == [jobs[0]]
    assert bytes_out(redis_client) - before < 100_000


def test_each_job_of_a_state_is_on_one_page_of_its_list(apiary: Caller, redis_client: redis.Redis) -> None:
    jobs = [apiary.a_job(image=IMAGE) for _ in range(9)]
    for job_id in jobs[::2]:
        apiary.post(f"/v1/jobs/{job_id}/cancel")

    first = apiary.get("/v1/jobs?status=canceled&limit=2").json
    # The place where the next page begins expires meanwhile.
    redis_client.zrem("mf:jobs:apiary", first["jobs"][-1]["id"])
    rest = apiary.get(first["next"].replace("limit=2", "limit=20")).json

    listed = [shown["id"] for page in (first, rest) for shown in page["jobs"]]
    assert sorted(listed) == sorted(jobs[::2])
    assert rest["next"] is None


def test_a_tenant_that_submits_and_cancels_for_ever_holds_its_quota_and_others_go_on(
    make_settings: SettingsMaker, redis_client: redis.Redis
) -> None:
    app = create_app(make_settings(max_record_bytes=400_000))
    apiary, bakery = Caller(app, KEYS["apiary"]), Caller(app, KEYS["bakery"])
    body, most, refused = big_job(), 0, None

    for _ in range(500):
        response = apiary.send(body)
        most = max(most, held_bytes(redis_client, "apiary"))
        if response.status_code != 202:
            refused = response
            break
        apiary.post(f"/v1/jobs/{response.json['id']}/cancel")

    assert refused is not None
    problem = check_problem(refused, 429, "over_quota")
    assert "400,000 bytes" in problem.detail
    assert 10 <= int(refused.headers["Retry-After"]) <= 600
    assert most <= 400_000
    assert memory_of_jobs(redis_client) <= 480_000
    assert bakery.send(body).status_code == 202


def test_what_a_tenant_deletes_no_longer_counts(make_settings: SettingsMaker, redis_client: redis.Redis) -> None:
    caller = Caller(create_app(make_settings(max_record_bytes=150_000)), KEYS["apiary"])
    first = caller.send(big_job()).json["id"]
    check_problem(caller.send(big_job()), 429, "over_quota")
    caller.post(f"/v1/jobs/{first}/cancel")

    assert caller.send(big_job()).status_code == 202

    assert caller.delete(f"/v1/jobs/{first}").status_code == 204
    assert set(redis_client.hgetall("mf:bytes:apiary")) == {"live", "kept"}


def test_a_failed_job_keeps_its_spec_for_a_retry_and_the_others_do_not(
    apiary: Caller, ledger: Ledger, redis_client: redis.Redis
) -> None:
    failed, canceled = apiary.a_job(image=IMAGE, metadata={"a": "b"}), apiary.a_job(image=IMAGE, metadata={"a": "b"})
    ledger.fail(claim(failed, ledger), "out_of_memory", "The worker ran out of memory.")
    apiary.post(f"/v1/jobs/{canceled}/cancel")
    shown = apiary.get(f"/v1/jobs/{canceled}").json

    assert redis_client.hget(f"mf:job:{canceled}", "spec") == ""
    assert (shown["mode"], shown["model"], shown["metadata"]) == ("everything", MODEL, {"a": "b"})
    assert apiary.post(f"/v1/jobs/{failed}/retry").status_code == 202
    assert claim(failed, ledger).spec.image.s3_uri == IMAGE["s3_uri"]


def held_bytes(client: redis.Redis, tenant: str) -> int:
    return sum(int(held) for held in cast("dict[str, str]", client.hgetall(f"mf:bytes:{tenant}")).values())


def memory_of_jobs(client: redis.Redis) -> int:
    """Return what the jobs' records really take, with the lists that they are in."""
    return sum(
        cast(int, client.memory_usage(key, samples=0))
        for pattern in ("mf:job:*", "mf:jobs:*", "mf:inflight:*", "mf:bytes:*", "mf:deadlines")
        for key in cast("list[str]", client.keys(pattern))
    )
