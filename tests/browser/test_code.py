"""The code that the page shows is the request that it sent, and runs as it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Playground


@pytest.mark.parametrize("program", ["curl", "Python"])
def test_the_code_sends_the_same_request(playground: Playground, program: str) -> None:
    playground.open_example()
    sent = playground.click(480, 400)
    playground.says("Segmented")
    labels = playground.page.locator("#candidates button").evaluate_all("all => all.map(b => b.ariaLabel)")
    shown = [int(re.search(r"([\d,]+) px", label)[1].replace(",", "")) for label in labels]  # type: ignore[index]  # it matches

    playground.page.get_by_role("tab", name="Code").click()
    code = playground.page.locator(f"#{program.lower()}").inner_text()

    stack = playground.stack
    assert stack.api_key not in code
    environment = {**os.environ, "MASKFLEET_API_URL": stack.api_url, "MASKFLEET_API_KEY": stack.api_key}
    if program == "curl":
        assert code.startswith(f"export MASKFLEET_API_URL={stack.api_url}\n")
        code = code.replace("MASKFLEET_API_KEY=…", f"MASKFLEET_API_KEY={stack.api_key}")
        assert json.loads(re.search(r"-d '(.*)'", code, re.S)[1]) == {k: v for k, v in sent.items() if k != "priority"}  # type: ignore[index]  # it matches
        ran = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, timeout=120)
        areas = [mask["area"] for mask in json.loads(ran.stdout)["inline"]["masks"]]
    else:
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        areas = [int(line.split()[0]) for line in ran.stdout.splitlines()]
    assert areas == shown


def test_without_an_object_the_code_is_that_of_everything_and_is_copied(playground: Playground) -> None:
    playground.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.open_example()
    playground.page.get_by_role("tab", name="Code").click()

    playground.page.locator("[data-copy=python]").click()
    playground.says("Copied.")

    copied = playground.page.evaluate("() => navigator.clipboard.readText()")
    assert 'mode="everything"' in copied
    expect(playground.page.locator("#python")).to_have_text(copied)
