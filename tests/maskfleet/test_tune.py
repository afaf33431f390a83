"""``maskfleet worker --tune``: real servers and nodes of its own, and what it recommends."""

from __future__ import annotations

import io
import os
import re
import sys

import click
import pytest
from PIL import Image

from maskfleet.cli.tune import Trial, Tried, large_photo, recommended, settings_for_workers, tune_slots
from maskfleet.jobs.settings import SharedSettings
from maskfleet.stack.throughput import Throughput
from tests.maskfleet.conftest import Cli

QUICK = Trial(most_slots=2, measured_s=0.5, jobs_of_each=2, command=(sys.executable, "-m", "tests.worker.quick_fleet"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("MASKFLEET_MODEL", "./quick")
    # A shell that is configured for a service, which must not notice.
    monkeypatch.setenv("MASKFLEET_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("MASKFLEET_S3_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("MASKFLEET_HEALTH_PORT", "8080")
    return dict(os.environ)


def tried(*per_minute: float) -> list[Tried]:
    return [
        Tried(slots, Throughput(jobs=round(jobs * 10), began_ms=0, ended_ms=600_000, run_s=1), None, None)
        for slots, jobs in enumerate(per_minute, 1)
    ]


@pytest.mark.parametrize(
    ("per_minute", "slots"),
    [((60, 61, 62, 63), 1), ((60, 90, 92, 94), 2), ((60, 90, 96, 95), 3), ((60, 50, 40, 30), 1), ((10,), 1)],
)
def test_the_smallest_number_within_a_twentieth_of_the_best_is_recommended(
    per_minute: tuple[float, ...], slots: int
) -> None:
    assert recommended(tried(*per_minute)) == slots


def test_one_and_two_workers_are_measured_on_servers_of_its_own(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    tune_slots("cpu", environment, QUICK)

    said = capsys.readouterr().out
    assert re.search(r"1 worker: [\d.]+ jobs a minute", said)
    assert re.search(r"2 workers: [\d.]+ jobs a minute", said)
    assert re.search(r"Use --slots-per-device [12], or MASKFLEET_SLOTS_PER_DEVICE=[12]\.", said)


def test_more_workers_than_fit_end_the_search(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    tune_slots("cpu", {**environment, "QUICK_FLEET_FITS": "1"}, QUICK)

    said = capsys.readouterr().out
    assert "Not with 2 workers. The fleet ended." in said
    assert "need more memory" in said
    assert "Use --slots-per-device 1" in said


def test_if_not_even_one_starts_the_error_says_why(environment: dict[str, str]) -> None:
    with pytest.raises(click.ClickException, match="need more memory"):
        tune_slots("cpu", {**environment, "QUICK_FLEET_FITS": "0"}, QUICK)


def test_workers_under_test_know_nothing_of_the_service(environment: dict[str, str]) -> None:
    secret = {"MASKFLEET_WEBHOOK_MASTER_SECRETS": "whsec_x", "MASKFLEET_PRECISION": "float16"}
    own = SharedSettings(redis_url="redis://127.0.0.1:2/0", s3_endpoint="http://127.0.0.1:3")

    given = settings_for_workers({**environment, **secret}, own)

    assert {name: value for name, value in given.items() if name.startswith("MASKFLEET_")} == {
        "MASKFLEET_MODEL": "./quick",
        "MASKFLEET_PRECISION": "float16",
        "MASKFLEET_REDIS_URL": "redis://127.0.0.1:2/0",
        "MASKFLEET_S3_ENDPOINT": "http://127.0.0.1:3",
        "MASKFLEET_S3_ACCESS_KEY": "",
        "MASKFLEET_S3_SECRET_KEY": "",
        "MASKFLEET_BUCKET": "maskfleet",
        "MASKFLEET_DRAIN_GRACE_S": "0",
    }


def test_the_photo_has_twelve_megapixels() -> None:
    with Image.open(io.BytesIO(large_photo())) as photo:
        assert photo.format == "JPEG"
        assert photo.width * photo.height == pytest.approx(12e6, rel=0.01)


def test_tune_and_a_number_of_slots_exclude_each_other(cli: Cli) -> None:
    answer = cli("worker", "--tune", "--slots-per-device", "2")

    assert answer.returncode == 2
    assert "leave --slots-per-device out" in answer.stderr
