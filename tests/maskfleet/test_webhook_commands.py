"""Webhooks from the client and the command line: inspected, redelivered, pinged; with a whole local stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from maskfleet import Client, verify_webhook
from maskfleet.client.errors import NotFound, Refused, WebhookRejected
from maskfleet.jobs.schema.delivery import DeliveryView
from maskfleet.jobs.webhook_secrets import tenant_secret
from maskfleet.stack.process import StackLine
from tests.conftest import WEBHOOK_MASTER, WEBHOOK_SECRET
from tests.maskfleet.conftest import Cli
from tests.maskfleet.scripted_server import Answer, ScriptedServer
from tests.waiting import wait_until

UNKNOWN = f"msg_ping_{'0' * 32}"
#: The stack may be busy with jobs that other tests left in it.
SOON_S = 60


@pytest.fixture
def server(running_stack: StackLine) -> dict[str, str]:
    return {"MASKFLEET_API_URL": running_stack.api_url, "MASKFLEET_API_KEY": running_stack.api_key}


@pytest.fixture
def hook() -> Iterator[ScriptedServer]:
    """A receiver that fails once, then works."""
    with ScriptedServer(Answer(500, b"<b>Sorry</b>"), Answer(204)) as hook:
        yield hook


def tried_once(client: Client, hook: ScriptedServer) -> DeliveryView:
    """The webhook of an ended job, after its first attempt; the next one is seconds away."""
    job = client.submit(photo="s3://photos/nothing.png", mode="everything", webhook={"url": f"{hook.url}/hook"})
    client.wait(job.id, timeout_s=SOON_S)
    wait_until(lambda: [one for one in client.deliveries(job.id) if one.tries], SOON_S)
    [delivery] = client.deliveries(job.id)
    return delivery


def test_a_webhook_is_looked_at_and_sent_again(client: Client, hook: ScriptedServer) -> None:
    failed = tried_once(client, hook)

    again = client.redeliver(failed.id)
    wait_until(lambda: client.delivery(failed.id).state == "delivered", SOON_S)

    assert (failed.type, failed.url) == ("job.failed", f"{hook.url}/hook")
    assert (failed.tries[0].status, failed.tries[0].answer) == (500, "<b>Sorry</b>")
    assert again.id == failed.id
    first, *_, last = hook.asked
    assert first.body == last.body
    assert first.headers["webhook-id"] == last.headers["webhook-id"] == failed.id
    assert verify_webhook(last.body, last.headers, WEBHOOK_SECRET).type == "job.failed"


def test_the_webhooks_of_a_time_are_sent_again(client: Client) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    with ScriptedServer(Answer(204)) as hook:
        arrived = tried_once(client, hook)

        failed = client.redeliver_range(began)
        every = client.redeliver_range(began, datetime.now(UTC) + timedelta(seconds=1), only_failed=False)
        wait_until(lambda: len(hook.asked) == 2, SOON_S)

    assert arrived.id not in failed.queued
    assert arrived.id in every.queued
    assert not every.more
    assert hook.asked[-1].headers["webhook-id"] == arrived.id


def test_what_is_not_there_or_makes_no_sense_is_refused_in_the_servers_words(client: Client) -> None:
    with pytest.raises(NotFound, match="delivery_not_found"):
        client.redeliver(UNKNOWN)
    with pytest.raises(NotFound, match="job_not_found"):
        client.deliveries(f"job_{'0' * 32}")
    with pytest.raises(Refused, match="invalid_range"):
        client.redeliver_range(datetime(2026, 1, 1))  # without its time zone
    with pytest.raises(Refused, match="invalid_ping"):
        client.ping_webhook("ftp://example.com/")
    with pytest.raises(Refused, match="invalid_ping"):
        client.ping_webhook()


def test_a_ping_gives_what_was_signed_and_answered(client: Client) -> None:
    with ScriptedServer(Answer(200, b"thanks")) as hook:
        ping = client.ping_webhook(f"{hook.url}/hook", held_s=SOON_S)

    [asked] = hook.asked
    assert ping.code == "delivered"
    assert ping.body.encode() == asked.body
    assert ping.headers is not None
    assert verify_webhook(ping.body.encode(), ping.headers, WEBHOOK_SECRET).type == "webhook.ping"
    assert [(one.status, one.answer) for one in ping.delivery.tries] == [(200, "thanks")]


def test_the_commands_show_each_try_and_send_again(
    cli: Cli, server: dict[str, str], client: Client, hook: ScriptedServer
) -> None:
    failed = tried_once(client, hook)

    again = cli("redeliver", failed.id, **server)
    wait_until(lambda: client.delivery(failed.id).state == "delivered", SOON_S)
    shown = cli("deliveries", failed.job_id or "", **server)
    as_json = cli("deliveries", failed.id, "--json", **server)
    several = cli("redeliver", "--from", failed.created_at.isoformat(), "--all", **server)

    assert again.returncode == shown.returncode == several.returncode == 0
    assert again.stdout.startswith(f"{failed.id}  job.failed  ")
    head, first, *_, last = shown.stdout.splitlines()
    assert head == f"{failed.id}  job.failed  delivered  {hook.url}/hook"
    assert first.startswith("  1  20")
    assert "  500  " in first
    assert first.endswith("<b>Sorry</b>")
    assert last.endswith("  204")
    assert json.loads(as_json.stdout)["state"] == "delivered"
    assert failed.id in several.stdout.splitlines()
    assert "sent again" in several.stderr


def test_the_secret_is_shown_and_rotated_and_webhooks_verify_with_it(cli: Cli, running_stack: StackLine) -> None:
    made = cli(
        *("keys", "create", "--tenant", "keeper", "--scope", "webhooks:secret", "--scope", "jobs:write"),
        MASKFLEET_REDIS_URL=running_stack.redis_url,
    )
    keeper = {"MASKFLEET_API_URL": running_stack.api_url, "MASKFLEET_API_KEY": made.stdout.strip()}

    first = cli("webhook", "secret", **keeper)
    second = cli("webhook", "secret", "--rotate", **keeper)
    as_json = cli("webhook", "secret", "--json", **keeper)
    with Client(running_stack.api_url, made.stdout.strip()) as client, ScriptedServer(Answer(204)) as hook:
        known = client.webhook_secret()
        ping = client.ping_webhook(f"{hook.url}/hook", held_s=SOON_S)
        alone = client.rotate_webhook_secret(overlap_s=0)

    assert first.stdout.strip() == tenant_secret(WEBHOOK_MASTER, "keeper")
    assert (first.returncode, second.returncode, first.stderr) == (0, 0, "")
    assert second.stderr.startswith("An earlier secret signs, too, until 20")
    assert known.all == (second.stdout.strip(), first.stdout.strip())
    assert json.loads(as_json.stdout)["secret"] == known.secret
    assert known.secret not in repr(known)
    assert first.stdout.strip() not in repr(known)
    for secret in known.all:
        assert verify_webhook(ping.body.encode(), ping.headers or {}, secret).type == "webhook.ping"
    with pytest.raises(WebhookRejected, match="wrong_signature"):
        verify_webhook(ping.body.encode(), ping.headers or {}, WEBHOOK_SECRET)
    assert alone.earlier == ()
    assert alone.secret not in known.all


def test_the_command_pings_and_its_exit_status_says_whether_it_arrived(cli: Cli, server: dict[str, str]) -> None:
    with ScriptedServer(Answer(204), Answer(503, b"later")) as hook:
        good = cli("webhook", "ping", f"{hook.url}/hook", **server)
        bad = cli("webhook", "ping", f"{hook.url}/hook", "--json", **server)

    assert (good.returncode, good.stderr) == (0, "")
    lines = good.stdout.splitlines()
    assert lines[0] == f"POST {hook.url}/hook"
    assert any(line.startswith("webhook-signature: v1,") for line in lines)
    assert hook.asked[0].body.decode() in lines
    assert lines[-1].endswith("  204")
    assert (bad.returncode, bad.stderr.partition(":")[0]) == (1, "not_delivered")
    assert json.loads(bad.stdout)["delivery"]["tries"][0]["answer"] == "later"


def test_faults_of_the_caller_end_with_status_2(cli: Cli, server: dict[str, str]) -> None:
    for arguments, said in (
        (("redeliver",), "Give either DELIVERY or --from"),
        (("redeliver", UNKNOWN, "--all"), "Give either DELIVERY or --from"),
        (("redeliver", "--from", "yesterday"), "is not a time"),
        (("redeliver", UNKNOWN), "delivery_not_found: "),
        (("deliveries", UNKNOWN), "delivery_not_found: "),
        (("deliveries", f"job_{'0' * 32}"), "job_not_found: "),
        (("webhook", "ping"), "invalid_ping: "),
        (("webhook", "secret", "--overlap", "60"), "--overlap needs --rotate"),
        (("webhook", "secret", "--rotate", "--overlap", "9999999"), "not in the range"),
    ):
        answer = cli(*arguments, **server)

        assert answer.returncode == 2, arguments
        assert said in answer.stderr
        assert answer.stdout == ""
