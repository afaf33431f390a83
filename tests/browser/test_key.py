"""The key: from the link of `maskfleet up`, or asked for; in this tab only, and in no URL."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import BrowserContext, expect

from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.settings import SharedSettings
from maskfleet.stack.process import StackLine
from maskfleet.stack.settings import TENANT
from tests.browser.conftest import Playground

STORED = "() => [{...sessionStorage}, {...localStorage}]"


def test_the_link_of_up_opens_the_page_and_its_key_leaves_the_address(
    playground: Playground, context: BrowserContext, running_stack: StackLine
) -> None:
    key = running_stack.api_key
    playground.connect()

    assert playground.page.url == f"{running_stack.api_url}/"
    in_tab, in_browser = playground.page.evaluate(STORED)
    assert in_tab == {"maskfleet.key": key}
    assert in_browser == {}
    assert context.cookies() == []
    assert [url for _, url in playground.sent if key in url] == []

    playground.page.reload()  # the tab still has it
    expect(playground.page.locator("#welcome")).to_be_visible()
    other = context.new_page()  # another tab has not
    other.goto(running_stack.api_url)
    expect(other.locator("#key-form")).to_be_visible()


def test_without_a_key_it_is_asked_for(playground: Playground, running_stack: StackLine) -> None:
    page = playground.page
    page.goto(running_stack.api_url)
    expect(page.get_by_label("API key")).to_be_focused()

    page.get_by_label("API key").fill("no-such-key")
    page.keyboard.press("Enter")
    expect(page.locator("#key-problem")).not_to_be_empty()
    expect(page.locator("#key-form")).to_be_visible()
    assert page.evaluate(STORED)[0] == {}

    page.get_by_label("API key").fill(running_stack.api_key)
    page.get_by_role("button", name="Connect").click()
    expect(page.locator("#welcome")).to_be_visible()


def test_the_key_is_forgotten_on_demand(playground: Playground) -> None:
    playground.connect()

    playground.page.get_by_role("button", name="Forget key").click()

    expect(playground.page.locator("#key-form")).to_be_visible()
    assert playground.page.evaluate(STORED)[0] == {}


def with_key_for(stack: StackLine, *scopes: Scope) -> StackLine:
    """Return the stack with another key of its tenant."""
    _, key = KeyStore(connect(SharedSettings(redis_url=stack.redis_url))).create(TENANT, list(scopes))
    return stack.model_copy(update={"api_key": key.get_secret_value()})


def test_with_a_key_that_may_not_go_first_clicks_wait_in_line(playground: Playground) -> None:
    playground.stack = with_key_for(playground.stack, Scope.READ, Scope.WRITE)
    playground.open_example()

    spec = playground.click(480, 400)
    playground.says("Segmented")

    assert spec["priority"] == "normal"


def test_with_a_key_that_may_only_read_jobs_are_shown_and_no_picture_is_taken(playground: Playground) -> None:
    playground.stack = with_key_for(playground.stack, Scope.READ)
    playground.connect()

    playground.page.get_by_role("button", name="Pebbles").click()

    playground.says("jobs:write")
    expect(playground.page.locator("#jobs")).to_be_visible()
    expect(playground.page.locator("#forget")).to_be_visible()


def test_the_key_is_in_no_url_whatever_the_page_does(playground: Playground, running_stack: StackLine) -> None:
    playground.open_example()
    playground.click(480, 400)
    playground.says("Segmented")

    assert len(playground.sent) > 10
    assert [url for _, url in playground.sent if running_stack.api_key in url or "access_token" in url] == []
    logs = list(Path(running_stack.data).rglob("*.log"))
    assert len(logs) >= 4
    assert [str(log) for log in logs if running_stack.api_key in log.read_text(errors="replace")] == []
    origins = {url.split("/")[2] for _, url in playground.sent if url.startswith("http")}
    assert origins == {running_stack.api_url.split("/")[2], running_stack.s3_endpoint.split("/")[2]}
