"""Count the commands that Redis runs, those inside scripts too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import redis

#: Of the connection and of this count itself.
_NOT_COUNTED = {
    "info",
    "hello",
    "auth",
    "select",
    "client|setinfo",
    "client|setname",
    "ping",
    "script|load",
}


@contextmanager
def counted_commands(client: redis.Redis) -> Iterator[Counter[str]]:
    """Yield a counter that holds, after the block, how often each command was run in it."""
    counter: Counter[str] = Counter()
    before = _calls(client)
    yield counter
    counter.update(_calls(client) - before)


def _calls(client: redis.Redis) -> Counter[str]:
    stats = cast("dict[str, dict[str, int]]", client.info("commandstats"))
    calls = Counter({name.removeprefix("cmdstat_"): fields["calls"] for name, fields in stats.items()})
    return Counter({name: count for name, count in calls.items() if name not in _NOT_COUNTED})
