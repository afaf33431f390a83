"""Tokens from the client and the command line, with a whole local stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskfleet import AuthenticationError, Client, Refused
from maskfleet.stack.process import StackLine
from tests.maskfleet.conftest import Cli


@pytest.fixture
def server(running_stack: StackLine) -> dict[str, str]:
    return {"MASKFLEET_API_URL": running_stack.api_url, "MASKFLEET_API_KEY": running_stack.api_key}


def test_a_token_is_good_for_its_image_and_no_other(client: Client, running_stack: StackLine, coins: Path) -> None:
    upload_id = client.upload(coins)
    made = client.create_token(upload_id=upload_id, ttl_s=300, scopes=["jobs:read", "jobs:write"])

    assert made.scopes == ("jobs:read", "jobs:write")
    assert made.token not in repr(made)
    with Client(running_stack.api_url, made.token) as page:
        job = page.submit(mode="point", image={"upload_id": upload_id}, prompts=[{"points": [[153, 126]]}])
        assert page.wait(job.id, timeout_s=60).status == "succeeded"
        with pytest.raises(Refused) as refused:
            page.submit(photo=coins, mode="everything")
        with pytest.raises(Refused) as listing:
            list(page.jobs())
    assert (refused.value.code, listing.value.code) == ("image_not_allowed", "token_not_allowed")


def test_a_token_is_made_on_the_command_line(cli: Cli, server: dict[str, str]) -> None:
    plain = cli("token", "--ttl", "60", "--scope", "jobs:read", **server)
    as_json = cli("token", "--json", **server)

    assert plain.returncode == as_json.returncode == 0, plain.stderr
    assert plain.stdout.startswith("mft_")
    assert "jobs:read until " in plain.stderr
    assert json.loads(as_json.stdout)["scopes"] == ["jobs:read", "jobs:write"]
    with Client(server["MASKFLEET_API_URL"], plain.stdout.strip()) as page:
        assert page.models()
        with pytest.raises(Refused) as refused:
            page.cancel(f"job_{'0' * 32}")
    assert refused.value.code == "missing_scope"


def test_a_token_that_was_cut_off_is_refused(server: dict[str, str], client: Client) -> None:
    token = client.create_token().token

    with Client(server["MASKFLEET_API_URL"], token[:-5]) as page, pytest.raises(AuthenticationError) as refused:
        page.models()

    assert refused.value.code == "invalid_token"
