"""The checks of ``maskfleet doctor``: each asks the thing itself, and says how to mend what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from maskfleet.cli.checks.finding import CannotGoOnError, Finding, State
from maskfleet.cli.checks.machine import check_device, check_disk, check_ports, check_versions
from maskfleet.cli.checks.model import check_model
from maskfleet.cli.checks.read_settings import read_settings, settings_detail
from maskfleet.cli.checks.servers import check_clock, check_keys, check_redis, check_store, check_workers

__all__ = ["Finding", "State", "examine"]


def examine(data: Path, *, is_named: bool, load_model: bool) -> Iterator[Finding]:
    """Yield the findings, one after another.

    data: the folder of a local stack.  is_named: whether that stack is meant; else the settings' servers come first.
    """
    yield check_versions()
    try:
        settings = read_settings(data, is_named=is_named)
    except CannotGoOnError as error:
        yield error.finding
        return
    yield Finding("settings", State.OK, settings_detail(settings))
    redis_answers = yield from check_redis(settings)
    yield from check_store(settings)
    yield check_clock(settings, redis_answers)
    yield from check_workers(settings, redis_answers)
    yield from check_keys(settings, redis_answers)
    yield from check_ports(settings)
    yield check_device(settings.worker)
    yield from check_model(settings, load_model)
    yield from check_disk()
