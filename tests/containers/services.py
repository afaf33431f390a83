"""Run what docker-compose.yml says, and nothing else: a key that is not understood here is an error."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.containers.engine import LIMITS, ContainerError, Engine

HEALTHY_IN_S = 180
UNDERSTOOD = {
    *("build", "image", "command", "entrypoint", "environment", "ports", "volumes", "healthcheck", "init"),
    *("stop_grace_period", "depends_on", "restart", "profiles"),
}


class Services:
    """The services of a compose file as containers of one network."""

    def __init__(self, engine: Engine, services: Mapping[str, Any], folder: Path, project: str = "maskfleet") -> None:
        """folder: that of the compose file."""
        self._engine = engine
        self._services = services
        self._folder = folder
        self._project = project
        for name, service in services.items():
            if unknown := set(service) - UNDERSTOOD:
                raise ValueError(f"{name}: {', '.join(sorted(unknown))}")

    def up(self) -> dict[str, float]:
        """Start the services without a profile, each after what it depends on; return how long each took, in s."""
        self._engine.podman("network", "create", self.network)
        took: dict[str, float] = {}
        waiting = {name: one for name, one in self._services.items() if not one.get("profiles")}
        while waiting:
            name = next(name for name, one in waiting.items() if not set(one.get("depends_on", {})) & set(waiting))
            for other, how in waiting.pop(name).get("depends_on", {}).items():
                self._wait(other, how["condition"])
            took[name] = self.start(name)
        return took

    def start(self, name: str, number: int = 1) -> float:
        """Start a container of a service; return the seconds until it is healthy, 0 for one that has no such check."""
        began = time.monotonic()
        container = self.container(name, number)
        self._engine.podman("run", "--detach", f"--name={container}", *self._options(name), *self._command(name))
        check = self._check(name)
        if check is None:
            return 0.0
        while not self._is_healthy(container, check):
            if time.monotonic() - began > HEALTHY_IN_S:
                raise ContainerError(f"{name} is not healthy after {HEALTHY_IN_S} s:\n{self.log(container)}")
            time.sleep(0.5)
        return round(time.monotonic() - began, 1)

    def run_once(self, name: str, *command: str) -> str:
        """Run a service's container with another command to its end; return what it printed."""
        return self._engine.podman("run", "--rm", *self._options(name), *self._command(name, command))

    def container(self, name: str, number: int = 1) -> str:
        return f"{self._project}-{name}-{number}"

    @property
    def network(self) -> str:
        return f"{self._project}_default"

    def log(self, container: str) -> str:
        """Return the end of a container's log."""
        return self._engine.podman("logs", "--tail=40", container)

    def down(self) -> None:
        """Remove all containers, the network and the volumes."""
        while self._engine.podman("ps", "--all", "--quiet"):
            # One that ends by itself meanwhile is an error of podman's.
            with suppress(ContainerError):
                self._engine.podman("rm", "--all", "--force", "--time=1")
        self._engine.podman("network", "rm", "--force", self.network)
        self._engine.podman("volume", "rm", "--all", "--force")

    def _wait(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            status = self._engine.podman("wait", self.container(name))
            if status != "0":
                raise ContainerError(f"{name} ended with status {status}:\n{self.log(self.container(name))}")
        elif condition != "service_healthy":  # else ``start`` has waited for it
            raise ValueError(condition)

    def _options(self, name: str) -> list[str]:
        service = self._services[name]
        options = [*LIMITS, "--pull=never", "--no-healthcheck", f"--network={self.network}", f"--network-alias={name}"]
        options += [f"--env={key}={value}" for key, value in service.get("environment", {}).items()]
        options += [f"--publish={port}" for port in service.get("ports", ())]
        options += [f"--volume={self._volume(text)}" for text in service.get("volumes", ())]
        options += ["--init"] if service.get("init") else []
        if grace := service.get("stop_grace_period"):
            options.append(f"--stop-timeout={_seconds(grace)}")
        if restart := service.get("restart"):
            options.append(f"--restart={restart}")
        if entrypoint := service.get("entrypoint"):
            options.append(f"--entrypoint={json.dumps(entrypoint)}")
        return options

    def _command(self, name: str, command: Sequence[str] | None = None) -> list[str]:
        service = self._services[name]
        return [service["image"], *(service.get("command", ()) if command is None else command)]

    def _volume(self, text: str) -> str:
        source, _, target = text.partition(":")
        return f"{self._folder / source if source.startswith('.') else f'{self._project}_{source}'}:{target}"

    def _check(self, name: str) -> list[str] | None:
        """Return the command that says whether a service is healthy, the file's or its image's; None for none."""
        check = self._services[name].get("healthcheck")
        if check is None:
            config = self._engine.inspect_image(self._services[name]["image"]).get("Healthcheck") or {}
            check = {"test": config.get("Test")}
        if check.get("disable") or not check["test"] or self._services[name].get("restart") == "on-failure":
            return None
        kind, *command = check["test"]
        return command if kind == "CMD" else ["sh", "-c", *command]

    def _is_healthy(self, container: str, check: Sequence[str]) -> bool:
        try:
            self._engine.podman("exec", container, *check)
        except (ContainerError, subprocess.TimeoutExpired):
            return False
        return True


def _seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([sm])", text).groups()  # type: ignore[union-attr]  # fails loudly on others
    return int(number) * {"s": 1, "m": 60}[unit]
