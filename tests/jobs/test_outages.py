"""What each error of Redis means, and that a client leaves a server that has become a replica."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis._parsers.base import BaseParser

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.connection import SentinelUrl, redis_errors
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outages import reason_of


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("READONLY You can't write against a read only replica.", "read_only"),
        ("NOREPLICAS Not enough good replicas to write.", "no_replicas"),
        ("MISCONF Errors writing to the AOF file: No space left on device", "disk"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "full"),
        ("LOADING Redis is loading the dataset in memory", "loading"),
        ("BUSY Redis is busy running a script.", "busy"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "no_primary"),
        ("CLUSTERDOWN The cluster is down", "cluster"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "cluster"),
        ("NOAUTH Authentication required.", "credentials"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "credentials"),
        ("NOPERM User api has no permissions to run the 'keys' command", "permission"),
        ("ERR max number of clients reached", "not_responding"),
        ("ERR user_script:3: Script attempted to access nonexistent global variable 'foo'", None),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", None),
    ],
)
def test_an_answer_is_an_outage_or_a_mistake(said: str, reason: str | None) -> None:
    error, in_pipeline = BaseParser.parse_error(said), BaseParser.parse_error(said)
    redis.Redis().pipeline().annotate_exception(in_pipeline, 1, ["HMGET", "mf:job:job_1", "status"])

    assert "HMGET" in str(in_pipeline)
    assert reason_of(error) == reason_of(in_pipeline) == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (redis.ConnectionError("Connection refused"), "not_responding"),
        (redis.TimeoutError("Timeout reading from socket"), "not_responding"),
        (redis.exceptions.InvalidResponse("Protocol Error"), "not_responding"),
        (redis.DataError("Invalid input of type: 'dict'"), None),
        (redis.exceptions.LockNotOwnedError("Cannot extend a lock that's no longer owned"), None),
        (ValueError("not Redis'"), None),
    ],
)
def test_an_error_without_an_answer_is_a_broken_connection_or_a_mistake(error: Exception, reason: str | None) -> None:
    assert reason_of(error) == reason


def test_a_script_that_fails_stays_loud(redis_client: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError, match="user_script"), redis_errors():
        redis_client.eval("return nothing_of_this_name()", 0)


def test_the_log_gets_what_redis_said_and_the_caller_does_not(redis_client: redis.Redis, ledger: Ledger) -> None:
    redis_client.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(QueueUnavailable) as raised:
            ledger.note_fenced()
    finally:
        redis_client.config_set("min-replicas-to-write", 0)

    assert raised.value.log_fields["reason"] == "no_replicas"
    assert "Not enough good replicas" in raised.value.log_fields["said"]
    assert "replicas" not in raised.value.detail


def test_however_many_ask_redis_is_asked_once_a_second(redis_client: redis.Redis) -> None:
    epoch = Epoch(redis_client)
    epoch.check()
    before = redis_client.info("commandstats")["cmdstat_evalsha"]["calls"]

    with ThreadPoolExecutor(8) as askers:
        for _ in askers.map(lambda _: epoch.check(), range(400)):
            pass

    asked = redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    assert asked < 20  # seconds, on however slow a machine


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("redis://127.0.0.1:6379/0", None),
        ("sentinel://one:26379/mymaster/0", SentinelUrl((("one", 26379),), "mymaster", 0, "", "")),
        (
            "sentinel://api:p%40ss@one,two:26380/mymaster/3",
            SentinelUrl((("one", 26379), ("two", 26380)), "mymaster", 3, "api", "p@ss"),
        ),
    ],
)
def test_a_sentinel_url_names_the_sentinels_and_the_primary(url: str, read: SentinelUrl | None) -> None:
    assert SentinelUrl.read(url) == read


@pytest.mark.parametrize("url", ["sentinel://one:26379", "sentinel://one:x/mymaster", "sentinel:///mymaster/0"])
def test_a_sentinel_url_without_its_parts_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sentinel://user:password@host"):
        SentinelUrl.read(url)
