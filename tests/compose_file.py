"""Read a compose file as Compose does, as far as ours go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def read_compose(path: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the services, with ``variables`` filled in.  Raises KeyError for one that must be set and is not."""

    def fill(match: re.Match[str]) -> str:
        name, operator, default = match.groups()
        if operator == ":?":
            return variables[name]
        return variables.get(name, default)

    services: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", fill, path.read_text()))["services"]
    return services
