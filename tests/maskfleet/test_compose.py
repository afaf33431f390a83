"""The compose files and the Dockerfiles agree with the code.  No Docker engine is needed: they are read, not run."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from packaging.requirements import Requirement

from maskfleet.cli.main import COMMANDS, main
from maskfleet.jobs.settings import LOCAL_API_URL, ApiSettings, CourierSettings, SharedSettings, WorkerSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.buckets import make_buckets
from tests.compose_file import read_compose

SETTINGS: dict[str, type[SharedSettings]] = {
    "api": ApiSettings,
    "worker": WorkerSettings,
    "outputs": WorkerSettings,
    "courier": CourierSettings,
    "buckets": ApiSettings,
    "operator": SharedSettings,
}
#: What a user must put into ``.env``.
ENV = {
    "MASKFLEET_API_KEYS": "me:key",
    "MASKFLEET_WEBHOOK_MASTER_SECRETS": "whsec_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw",
    "MASKFLEET_S3_ACCESS_KEY": "access",
    "MASKFLEET_S3_SECRET_KEY": "secret",
    **{f"MASKFLEET_REDIS_PASSWORD_{user.upper()}": f"of-{user}" for user in ("api", "worker", "courier", "operator")},
}


@pytest.fixture(scope="module")
def compose(repository: Path) -> dict[str, Any]:
    """The services, with the ``.env`` filled in."""
    return read_compose(repository / "docker-compose.yml", ENV)


@pytest.fixture(scope="module")
def gpu(repository: Path) -> dict[str, Any]:
    return read_compose(repository / "deploy" / "compose.gpu.yml", ENV)


@pytest.fixture(scope="module")
def tls(repository: Path) -> dict[str, Any]:
    return read_compose(repository / "deploy" / "compose.tls.yml", ENV)


@pytest.fixture(scope="module", params=["api", "worker"])
def dockerfile(request: pytest.FixtureRequest, repository: Path) -> list[tuple[str, str]]:
    return read_dockerfile(repository / "deploy" / f"{request.param}.Dockerfile")


def test_the_programs_are_the_local_stacks(compose: dict[str, Any]) -> None:
    assert set(compose) == {"api", "worker", "outputs", "courier", "redis", "s3", "buckets", "operator"}


def test_the_worker_without_a_model_is_the_worker_but_for_that(compose: dict[str, Any], tls: dict[str, Any]) -> None:
    worker, outputs = compose["worker"], compose["outputs"]

    check_command(outputs["command"])
    assert (outputs["command"], outputs["profiles"]) == (["worker", "--devices", "none"], ["outputs"])
    shared = ("image", "init", "stop_grace_period", "depends_on", "restart")
    assert {name: outputs[name] for name in shared} == {name: worker[name] for name in shared}
    assert tls["outputs"] == tls["worker"]


@pytest.mark.parametrize("program", ["api", "worker", "courier"])
def test_every_program_is_a_user_of_its_own_of_redis(
    compose: dict[str, Any], tls: dict[str, Any], repository: Path, program: str
) -> None:
    users = (repository / "deploy" / "redis" / "users.acl").read_text()

    assert f"\nuser {program} on #<{program}> " in users
    assert compose["redis"]["environment"][f"REDIS_PASSWORD_{program.upper()}"] == f"of-{program}"
    assert compose[program]["environment"]["MASKFLEET_REDIS_URL"] == f"redis://{program}:of-{program}@redis:6379/0"
    with_tls = tls[program]["environment"]
    assert with_tls["MASKFLEET_REDIS_URL"] == f"rediss://{program}:of-{program}@redis:6379/0"
    assert tls[program]["volumes"] == [f"./tls/ca.crt:{with_tls['MASKFLEET_REDIS_CA']}:ro"]


def test_with_tls_redis_reads_the_certificates_that_are_mounted(tls: dict[str, Any], repository: Path) -> None:
    options = read_conf(repository / "deploy" / "redis" / "tls.conf")

    assert tls["redis"]["command"] == ["sh", "/maskfleet/start.sh", "--include", "/maskfleet/tls.conf"]
    assert tls["redis"]["volumes"] == ["./tls:/tls:ro"]
    assert (options["port"], options["tls-port"]) == ("0", "6379")
    assert {options[f"tls-{name}-file"] for name in ("cert", "key", "ca-cert")} == {
        "/tls/redis.crt",
        "/tls/redis.key",
        "/tls/ca.crt",
    }


@pytest.mark.parametrize("program", ["api", "worker", "courier"])
def test_every_command_is_one_of_the_command_line(compose: dict[str, Any], program: str) -> None:
    check_command(compose[program]["command"])

    assert compose[program]["command"][0] == program


def test_the_images_commands_are_ones_of_the_command_line(dockerfile: list[tuple[str, str]]) -> None:
    assert json.loads(last(dockerfile, "ENTRYPOINT")) == ["maskfleet"]
    check_command(json.loads(last(dockerfile, "CMD")))


def test_the_gpu_file_runs_a_node_on_every_gpu_that_it_asks_for(gpu: dict[str, Any]) -> None:
    worker = gpu["worker"]

    check_command(worker["command"])
    assert worker["command"] == ["worker", "--devices", "all"]
    (devices,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert devices == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


@pytest.mark.parametrize("program", SETTINGS)
def test_every_setting_is_known_to_its_program_and_valid(
    compose: dict[str, Any], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = compose[program]["environment"]
    fields = {f"MASKFLEET_{name.upper()}" for name in SETTINGS[program].model_fields}

    # Where traces go is said by OpenTelemetry's own variables.
    assert {name for name in environment if not name.startswith("OTEL_EXPORTER_OTLP_")} <= fields
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = SETTINGS[program]()

    assert settings.model == "facebook/sam-vit-base"
    assert settings.bucket == "maskfleet"


def test_all_programs_speak_to_the_same_servers(compose: dict[str, Any]) -> None:
    shared = {f"MASKFLEET_{name.upper()}" for name in SharedSettings.model_fields} - {"MASKFLEET_REDIS_URL"}
    told = [
        {name: value for name, value in compose[program]["environment"].items() if name in shared}
        for program in SETTINGS
    ]

    assert all(one == told[0] for one in told)
    assert told[0]["MASKFLEET_ALLOWED_BUCKETS"] == compose["buckets"]["environment"]["MASKFLEET_ALLOWED_BUCKETS"]
    assert told[0]["MASKFLEET_ALLOWED_BUCKETS"] == "photos"


def test_what_programs_must_agree_on_is_declared_once() -> None:
    classes = (SharedSettings, ApiSettings, WorkerSettings, CourierSettings)

    declared = [name for one in classes for name in one.__annotations__]

    assert len(declared) == len(set(declared))


def test_ports_agree_from_end_to_end(compose: dict[str, Any], repository: Path) -> None:
    api = read_dockerfile(repository / "deploy" / "api.Dockerfile")
    port = ApiSettings.model_fields["bind"].default.rpartition(":")[2]
    settings = compose["api"]["environment"]

    assert compose["api"]["command"][-2:] == ["--port", port]
    assert json.loads(last(api, "CMD")) == compose["api"]["command"]
    assert last(api, "EXPOSE") == port
    assert f"127.0.0.1:{port}/ready" in last(api, "HEALTHCHECK")
    assert compose["api"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert {compose[name]["environment"]["MASKFLEET_PUBLIC_URL"] for name in ("api", "courier")} == {LOCAL_API_URL}
    assert f"http://127.0.0.1:{port}" == LOCAL_API_URL
    assert settings["MASKFLEET_S3_ENDPOINT"] == "http://s3:8333"
    assert "-s3.port=8333" in compose["s3"]["command"]
    assert compose["s3"]["ports"] == ["127.0.0.1:8333:8333"]


def test_redis_keeps_everything_and_drops_nothing(compose: dict[str, Any], repository: Path) -> None:
    options = read_conf(repository / "deploy" / "redis" / "redis.conf")

    assert compose["redis"]["image"] == "redis:8"
    assert compose["redis"]["command"] == ["sh", "/maskfleet/start.sh"]
    assert options["appendonly"] == "yes"
    assert options["maxmemory-policy"] == "noeviction"
    assert compose["redis"]["volumes"] == ["redis:/data", "./deploy/redis:/maskfleet:ro"]


def test_s3_is_the_servers_own_keys_and_tells_nobody(compose: dict[str, Any]) -> None:
    keys = compose["s3"]["environment"]

    jwt = [f"WEED_JWT_{name}_KEY" for name in ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")]
    assert keys == {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "secret", **dict.fromkeys(jwt, "secret")}
    assert "-disableHttp=true" in compose["s3"]["command"]
    assert "-master.telemetry=false" in compose["s3"]["command"]
    assert "s3:/data" in compose["s3"]["volumes"]


def test_nothing_starts_before_what_it_needs(compose: dict[str, Any]) -> None:
    for program in ("api", "worker"):
        assert compose[program]["depends_on"] == {
            "redis": {"condition": "service_healthy"},
            "buckets": {"condition": "service_completed_successfully"},
        }
    assert compose["courier"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    for server in ("redis", "s3"):
        assert compose[server]["healthcheck"]["test"][0] == "CMD"


def test_no_program_runs_as_root(dockerfile: list[tuple[str, str]]) -> None:
    assert last(dockerfile, "USER") == "10001"
    assert dockerfile[-1][0] == "CMD"


def test_every_image_is_built_by_a_file_that_is_there(compose: dict[str, Any], repository: Path) -> None:
    built = {name: service["build"]["dockerfile"] for name, service in compose.items() if "build" in service}

    assert built == {
        "buckets": "deploy/api.Dockerfile",
        "api": "deploy/api.Dockerfile",
        "worker": "deploy/worker.Dockerfile",
        "courier": "deploy/api.Dockerfile",
        "operator": "deploy/api.Dockerfile",
    }
    assert all((repository / path).is_file() for path in built.values())


def test_the_api_image_installs_no_torch(repository: Path) -> None:
    api = installs(repository / "deploy" / "api.Dockerfile", repository)

    assert {"flask", "gunicorn", "urllib3"} <= api
    assert not {"torch", "transformers", "numpy"} & api


def test_the_worker_image_installs_what_the_worker_needs(repository: Path) -> None:
    worker = installs(repository / "deploy" / "worker.Dockerfile", repository)

    assert {"torch", "transformers", "nvidia-ml-py", "celery"} <= worker
    assert "flask" not in worker


@pytest.mark.parametrize("module", ["maskfleet.stack.buckets", "maskfleet.worker.node.health"])
def test_the_modules_that_are_run_by_name_are_there(compose: dict[str, Any], repository: Path, module: str) -> None:
    named = json.dumps(compose["buckets"]["entrypoint"]) + (repository / "deploy" / "worker.Dockerfile").read_text()

    assert f'"-m", "{module}"' in named
    assert callable(importlib.import_module(module).main)


def test_the_one_shot_makes_the_buckets_that_are_missing_and_may_run_again(store_fields: dict[str, str]) -> None:
    settings = ApiSettings(**{**store_fields, "bucket": "made-by-the-one-shot", "allowed_buckets": ("photos",)})

    make_buckets(settings)
    make_buckets(settings)

    Store(settings).ping()


def check_command(command: list[str]) -> None:
    """Let click read the command's options without running it."""
    name, *arguments = command
    assert name in COMMANDS
    found = main.get_command(click.Context(main), name)
    assert found is not None
    found.make_context(name, list(arguments))


def read_conf(path: Path) -> dict[str, str]:
    """Return the Redis settings in a file."""
    lines = (line.partition(" ") for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in lines}


def read_dockerfile(path: Path) -> list[tuple[str, str]]:
    """Return its instructions, continued lines joined, comments removed."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, value.strip()) for name, _, value in pairs]


def last(dockerfile: list[tuple[str, str]], instruction: str) -> str:
    return [value for name, value in dockerfile if name == instruction][-1]


def installs(dockerfile: Path, repository: Path) -> set[str]:
    """Return all packages that the image's extras pull in, as far as they are installed here."""
    (extras,) = re.findall(r'pip install -c constraints\.txt "\.\[([\w,]+)\]"', dockerfile.read_text())
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    asked = extras.split(",")
    for extra in asked:  # an extra of ours may name another one, which is then asked for as well
        for text in project["optional-dependencies"][extra]:
            if Requirement(text).name == project["name"]:
                asked += Requirement(text).extras
            else:
                wanted.append(text)
    return set(closure([Requirement(text) for text in wanted], set()))


def closure(wanted: list[Requirement], seen: set[str]) -> Iterator[str]:
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        yield name
        extras = requirement.extras or {""}
        needed: list[Requirement] = []
        with suppress(metadata.PackageNotFoundError):  # needed only by other platforms or tools
            needed = [Requirement(text) for text in metadata.requires(name) or ()]
        yield from closure(
            [
                one
                for one in needed
                if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
            ],
            seen,
        )
