"""The client for asyncio: made from the other one, and the same in what it sends and raises."""

from __future__ import annotations

import ast
import asyncio
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import trustme
from PIL import Image

from maskfleet import AsyncClient, AsyncJob, Client, Conflict, DamagedFile, NotFound, Unavailable, WaitTimeout
from maskfleet.client.asynchronous.download import download
from maskfleet.client.asynchronous.transport import AsyncTransport
from maskfleet.jobs.schema.record import JobView
from maskfleet.stack.process import StackLine
from maskfleet.stack.servers import free_port
from tests.maskfleet.async_client import TWINS, made
from tests.maskfleet.scripted_server import Answer, ScriptedServer
from tests.maskfleet.test_transport import ACCEPTED, AWAY, ENDED, EVENTS, JOB, an_event, manifest_of, problem
from tests.tls_relay import TlsRelay

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def test_it_is_what_is_made_from_the_other() -> None:
    differing = [name for name, text in made() if (TWINS / name).read_text() != text]

    assert differing == [], "maskfleet/client has changed: run `make async-client`"


def test_it_has_the_same_methods_and_none_that_blocks() -> None:
    def methods(path: Path) -> dict[str, str]:
        tree = ast.parse(path.read_text())
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        found = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        return {node.name: type(node).__name__ for node in found}

    plain, twin = methods(TWINS.parent / "client.py"), methods(TWINS / "client.py")

    assert {name.replace("__a", "__") for name in twin} == set(plain)
    blocking = {name for name, kind in twin.items() if kind == "FunctionDef"}
    assert blocking == {"__init__", "api_url", "_job", "_deadline", "_held"}


@pytest.mark.parametrize("first", [AWAY, Answer(hang_up=0)], ids=["503", "connection closed"])
def test_a_submit_that_is_repeated_sends_the_same_bytes_under_the_same_key(first: Answer, coins: Path) -> None:
    said: list[str] = []

    async def submit(url: str) -> AsyncJob:
        async with AsyncClient(url, "key", on_retry=said.append) as client:
            return await client.submit(photo=coins, mode="everything")

    with ScriptedServer(first, ACCEPTED) as server:
        job = run(submit(server.url))

    assert (type(job), job) == (AsyncJob, JOB)
    before, after = server.asked
    assert before.body == after.body
    assert coins.read_bytes() in after.body
    assert before.headers["idempotency-key"] == after.headers["idempotency-key"]
    assert after.headers["authorization"] == "Bearer key"
    assert "attempt 2 of 5" in said[0]


def test_errors_are_the_same() -> None:
    async def get(url: str) -> None:
        async with AsyncClient(url, "key", max_tries=1) as client:
            await client.get("job_1")

    for answer, kind in ((problem(404, "job_not_found"), NotFound), (problem(409, "c"), Conflict), (AWAY, Unavailable)):
        with ScriptedServer(answer) as server, pytest.raises(kind):
            run(get(server.url))
    with pytest.raises(Unavailable, match="connection refused"):
        run(get(f"http://127.0.0.1:{free_port()}"))


def test_both_clients_trust_the_same_authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async def get(url: str) -> AsyncJob:
        async with AsyncClient(url, "key", max_tries=1) as client:
            return await client.get(JOB.id)

    with ScriptedServer(ACCEPTED) as server, TlsRelay(int(server.url.rpartition(":")[2]), context) as relay:
        url = f"https://127.0.0.1:{relay.port}"
        with Client(url, "key", max_tries=1) as client, pytest.raises(Unavailable, match="certificate is not accepted"):
            client.get(JOB.id)
        with pytest.raises(Unavailable, match="certificate is not accepted"):
            run(get(url))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        with Client(url, "key", max_tries=1) as client:
            assert client.get(JOB.id) == run(get(url)) == JOB


def test_a_job_is_watched_over_one_stream_to_its_end() -> None:
    # U+2028 ends a line for some readers, but not in an event stream.
    odd = JOB.model_copy(update={"metadata": {"note": "a\u2028b"}})
    body = b"retry: 1000\r\n\r\n" + an_event(1, odd) + b": nothing new\n\n" + an_event(2, ENDED)

    async def watch(url: str) -> list[JobView]:
        async with AsyncClient(url, "key") as client:
            return [job async for job in client.watch(JOB.id, timeout_s=60)]

    with ScriptedServer(Answer(200, body, EVENTS)) as server:
        assert run(watch(server.url)) == [odd, ENDED]

    assert [asked.path for asked in server.asked] == [f"/v1/jobs/{JOB.id}/events"]


@pytest.mark.parametrize(
    "barred",
    [
        problem(503, "too_many_streams"),
        Answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"}),
        Answer(200, an_event(1, JOB), EVENTS, hang_up=20),
        Answer(hang_up=0),
    ],
    ids=["no place", "a page", "broken off", "closed"],
)
def test_a_job_is_asked_for_again_and_again_where_streams_are_barred(barred: Answer) -> None:
    queued, ended = (Answer(200, job.model_dump_json().encode()) for job in (JOB, ENDED))

    async def wait(url: str) -> tuple[JobView, list[JobView]]:
        seen: list[JobView] = []
        async with AsyncClient(url, "key") as client:
            return await client.wait(JOB.id, timeout_s=60, on_progress=seen.append), seen

    with ScriptedServer(barred, queued, ended) as server:
        assert run(wait(server.url)) == (ENDED, [JOB, ENDED])


def test_a_download_is_checked_and_the_store_never_sees_the_api_key(tmp_path: Path) -> None:
    async def fetch(url: str) -> None:
        async with AsyncTransport(url, "key") as transport:
            await download(transport, manifest_of(url, b"mask"), tmp_path)

    for damaged, error in ((Answer(body=b"mosk"), DamagedFile), (Answer(body=b"mask", hang_up=2), Unavailable)):
        with ScriptedServer(damaged) as server, pytest.raises(error):
            run(fetch(server.url))
        assert list(tmp_path.rglob("*.*")) == []
    with ScriptedServer(Answer(body=b"mask")) as server:
        run(fetch(server.url))

    assert (tmp_path / "masks" / "0000.png").read_bytes() == b"mask"
    assert "authorization" not in server.asked[0].headers


def test_many_jobs_are_awaited_at_once(running_stack: StackLine, coins: Path) -> None:
    boxes = [(304, 14, 366, 73), (244, 94, 298, 146)]

    async def segment() -> tuple[list[np.ndarray[Any, Any]], Image.Image, str]:
        async with AsyncClient(running_stack.api_url, running_stack.api_key) as client:
            found = await asyncio.gather(*(client.segment(coins, box=box, timeout_s=100) for box in boxes))
            job = found[0].job
            assert isinstance(job, AsyncJob)
            return [masks[0].array() for masks in found], await job.overlay(), job._repr_html_()

    pixels, overlay, shown = run(segment())

    with Client(running_stack.api_url, running_stack.api_key) as client:
        alone = [client.segment(coins, box=box)[0].array() for box in boxes]
    assert np.array_equal(pixels, alone)
    assert overlay.size == (384, 303)
    assert "data:image/jpeg;base64," in shown


def test_a_batch_is_awaited_and_fetched(running_stack: StackLine, coins: Path, tmp_path: Path) -> None:
    async def batch() -> tuple[tuple[AsyncJob, ...], list[str | None]]:
        async with AsyncClient(running_stack.api_url, running_stack.api_key) as client:
            photos = [coins, Image.open(coins), b"\x89PNG\r\n\x1a\n" + b"\0" * 64]
            sent = await client.submit_batch(photos, mode="box", prompts=[{"box": [304, 14, 366, 73]}])
            await client.wait_batch(sent.id, timeout_s=100)
            failures = [failure.job_id async for failure in client.batch_failures(sent.id)]
            return await client.fetch_batch(sent.id, tmp_path), failures

    jobs, failures = run(batch())

    assert [job.status for job in jobs] == ["succeeded", "succeeded", "failed"]
    assert failures == [jobs[2].id]
    assert (tmp_path / "0001" / "coco.json").is_file()


def test_other_tasks_go_on_while_one_waits() -> None:
    queued = Answer(200, JOB.model_dump_json().encode())

    async def wait(url: str) -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        async with AsyncClient(url, "key") as client:
            ticking = asyncio.create_task(tick())
            with pytest.raises(WaitTimeout):
                await client.wait(JOB.id, timeout_s=0.5)
            ticking.cancel()
        return ticks

    with ScriptedServer(queued) as server:
        assert run(wait(server.url)) > 100
