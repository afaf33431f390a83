"""For everyone: axe's rules in light and dark, from a phone to a 4K screen, and nothing that moves unasked.

With PICTURES=FOLDER, a screenshot of each state is put there, and those of docs/pictures are made again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from maskfleet.stack.process import StackLine
from tests.browser.conftest import PATIENCE_MS, Playground

SIZES = {"phone": (360, 780), "desktop": (1440, 900), "4k": (3840, 2160)}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def check_axe(page: Page, state: str) -> None:
    # Without the transitions: a colour on its way is none of the page's.
    page.wait_for_load_state()
    found = Axe().run(page, options=RULES).response["violations"]
    shown = {one["id"]: [node["html"][:200] + " " + node["failureSummary"] for node in one["nodes"]] for one in found}
    assert not shown, f"{state}: {json.dumps(shown, indent=1)}"


def check_width(page: Page, state: str) -> None:
    script = """() => [document.documentElement, ...document.querySelectorAll("#view, #side, #jobs, .panel, .tools")]
        .filter((part) => part.scrollWidth > part.clientWidth).map((part) => part.id || part.className)"""
    assert page.evaluate(script) == [], f"{state} scrolls sideways"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_of_the_page_passes_axe_and_fits_its_window(
    browser: Browser, running_stack: StackLine, pictures: Path, scheme: Any, size: str
) -> None:
    width, height = SIZES[size]
    # axe makes HTML of its own, which the page's policy would refuse.
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True
    )
    context.set_default_timeout(PATIENCE_MS)
    playground = Playground(context.new_page(), running_stack)
    page = playground.page

    def look(state: str) -> None:
        check_axe(page, state)
        check_width(page, state)
        if folder := os.environ.get("PICTURES"):
            kept = state == "filled" and (size == "desktop" or scheme == "light")
            name = f"playground-{size}-{scheme}-{state}.jpg"
            page.screenshot(path=(pictures if kept else Path(folder)) / name, type="jpeg", quality=85)

    page.goto(running_stack.api_url)
    expect(page.locator("#key-form")).to_be_visible()
    look("key")
    playground.connect()
    expect(page.locator("#examples img").last).to_be_visible()
    look("welcome")
    page.get_by_role("button", name="Buttons").click()
    playground.size = (960, 640)
    playground.says("Ready.")
    page.mouse.click(*playground.at(600, 320))
    playground.says("Segmented")
    look("clicked")
    if size == "desktop" or scheme == "light":
        playground.page.locator("#new-object").click()
        playground.fill()
        page.mouse.move(*playground.at(365, 118))
        look("filled")
    page.get_by_role("tab", name="Download").click()
    look("files")
    page.get_by_role("tab", name="Code").click()
    look("code")
    page.locator("#job-list a").first.click()
    expect(page.locator("#job-list [aria-current]")).to_be_visible()
    look("job")
    page.get_by_role("button", name="Keyboard shortcuts").click()
    look("shortcuts")
    context.close()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_those_who_want_it_so(browser: Browser, running_stack: StackLine, motion: Any) -> None:
    context = browser.new_context(reduced_motion=motion)
    page = context.new_page()
    page.goto(running_stack.api_url)

    moving = page.evaluate(
        """() => {
            const bar = document.getElementById("progress");
            bar.hidden = false;
            document.getElementById("forget").hidden = false;
            const button = getComputedStyle(document.getElementById("forget"));
            return [getComputedStyle(bar).animationName !== "none", button.transitionDuration !== "0s"];
        }"""
    )

    assert moving == [motion != "reduce"] * 2
    context.close()


def test_light_and_dark_follow_the_system_until_they_are_switched(browser: Browser, running_stack: StackLine) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(running_stack.api_url)
    dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    light = page.evaluate("() => getComputedStyle(document.body).backgroundColor")

    page.get_by_role("button", name="Switch between light and dark").click()

    assert dark != light
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == dark
    page.reload()
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == dark
    context.close()
