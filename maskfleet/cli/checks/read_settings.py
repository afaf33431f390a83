"""The settings that are checked: those of the programs, or a local stack's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from maskfleet.cli.checks.finding import CannotGoOnError, Finding, State
from maskfleet.data import DEMO_MODEL
from maskfleet.jobs.settings import ApiSettings, CourierSettings, WorkerSettings
from maskfleet.stack.discovery import LocalServer, local_server


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the three programs, with a local stack's servers where that is what is checked."""

    api: ApiSettings
    worker: WorkerSettings
    courier: CourierSettings
    stack: LocalServer | None


def read_settings(data: Path, *, is_named: bool) -> Settings:
    """Read the settings.  Raises CannotGoOnError."""
    try:
        api, worker, courier = ApiSettings(), WorkerSettings(), CourierSettings()
    except ValidationError as error:
        faults = "; ".join(
            f"{_variable(fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise _failed("settings", faults, "Correct these environment variables; see docs/operations.md.") from error
    stack = local_server(data)
    if is_named and stack is None:
        raise _failed(
            "settings",
            f"No stack runs from {data}.",
            f"Start one with `maskfleet up --data {data}`, or leave out --data to check the servers of MASKFLEET_*.",
        )
    # Redis and the store go together: one of them alone would be another service's.
    if not is_named and api.model_fields_set & {"redis_url", "s3_endpoint"}:
        stack = None
    if stack is None:
        return Settings(api, worker, courier, None)
    own = {**stack.servers, **({} if "model" in api.model_fields_set else {"model": str(DEMO_MODEL)})}
    bind = {"bind": stack.api_url.removeprefix("http://")}
    return Settings(
        api.model_copy(update={**own, **bind}), worker.model_copy(update=own), courier.model_copy(update=own), stack
    )


def settings_detail(settings: Settings) -> str:
    given = len(settings.api.model_fields_set | settings.worker.model_fields_set | settings.courier.model_fields_set)
    whose = f"the local stack at {settings.stack.api_url}" if settings.stack else f"{given} set in the environment"
    return f"They can be read: {whose}, for the rest the defaults."


def _failed(name: str, detail: str, mend: str) -> CannotGoOnError:
    return CannotGoOnError(Finding(name, State.FAILED, detail, mend))


def _variable(location: tuple[int | str, ...]) -> str:
    """Return the environment variable that a fault of the settings is in."""
    return f"MASKFLEET_{str(location[0]).upper()}" if location else "These settings together"
