"""Without a mouse: by keyboard alone, and by touch on a phone."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import BrowserContext, CDPSession, expect

from tests.browser.conftest import Playground


def test_everything_is_reached_by_keyboard(playground: Playground) -> None:
    playground.connect()
    page, press = playground.page, playground.page.keyboard.press

    tab_to(playground, "button:has-text('Pebbles')")
    press("Enter")
    playground.says("Ready.")
    tab_to(playground, "#picture")
    for key in ("ArrowRight", "ArrowDown", "Shift+ArrowDown"):  # the first one shows the crosshair, in the middle
        press(key)
    with page.expect_request("**/v1/jobs") as sent:
        press("Enter")
    assert sent.value.post_data_json["prompts"][0]["points"] == [[480, 412.8]]
    playground.says("Segmented")
    expect(page.locator("#spoken")).to_contain_text("Object 1")  # what the crosshair is on is spoken
    with page.expect_request("**/v1/jobs") as sent:
        press("Shift+Enter")
    assert sent.value.post_data_json["prompts"][0]["labels"] == [1, 0]
    playground.says("Segmented")

    press("n")
    press("b")
    press("Enter")
    for _ in range(3):
        press("Shift+ArrowRight")
        press("Shift+ArrowDown")
    with page.expect_request("**/v1/jobs") as sent:
        press("Enter")
    assert sent.value.post_data_json["mode"] == "box"
    playground.says("Segmented")
    expect(page.locator("#masks .mask")).to_have_count(2)
    press("2")
    expect(page.locator("#candidates button").nth(1)).to_have_attribute("aria-checked", "true")
    press("u")
    press("Delete")
    expect(page.locator("#masks .mask")).to_have_count(1)
    press("Control+z")
    expect(page.locator("#masks .mask")).to_have_count(2)
    press("a")
    expect(page.get_by_label("Show masks")).not_to_be_checked()
    press("a")

    tab_to(playground, "#tab-masks")
    press("ArrowRight")
    expect(page.locator("#panel-files")).to_be_visible()
    press("ArrowRight")
    expect(page.locator("#panel-code")).to_be_visible()
    press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    tab_to(playground, "#job-list a")  # each job is a link


def tab_to(playground: Playground, selector: str) -> None:
    """Press Tab until an element has the focus; what cannot be reached so is never reached."""
    for _ in range(80):
        playground.page.keyboard.press("Tab")
        if playground.page.locator(f"{selector}:focus").count():
            return
    raise AssertionError(f"{selector} is not reached by Tab.")


def test_single_key_shortcuts_can_be_switched_off(playground: Playground) -> None:
    playground.open_example()
    playground.page.get_by_role("button", name="Keyboard shortcuts").click()
    playground.page.get_by_label("Single-key shortcuts").uncheck()
    playground.page.get_by_role("button", name="Close").click()

    playground.page.keyboard.press("b")

    expect(playground.page.get_by_role("radio", name="Add")).to_have_attribute("aria-checked", "true")


@pytest.fixture
def window(request: pytest.FixtureRequest) -> dict[str, Any]:
    if "phone" not in request.fixturenames:
        return {"viewport": {"width": 1440, "height": 900}}
    return {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


@pytest.fixture
def phone(context: BrowserContext, playground: Playground) -> CDPSession:
    return context.new_cdp_session(playground.page)


def touch(phone: CDPSession, *points: tuple[float, float]) -> None:
    """Put a finger down at the first point, move it over the others, and lift it."""
    for kind, at in (("touchStart", points[0]), *(("touchMove", point) for point in points[1:])):
        phone.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": at[0], "y": at[1]}]})
    phone.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_finger_taps_points_and_draws_boxes(playground: Playground, phone: CDPSession) -> None:
    playground.open_example()
    page = playground.page

    page.locator("#picture").scroll_into_view_if_needed()
    with page.expect_request("**/v1/jobs") as sent:
        touch(phone, playground.at(480, 400))
    assert sent.value.post_data_json["mode"] == "point"
    playground.says("Segmented")
    page.get_by_role("radio", name="Remove").tap()
    with page.expect_request("**/v1/jobs") as sent:
        touch(phone, playground.at(200, 200))
    assert sent.value.post_data_json["prompts"][0]["labels"] == [1, 0]
    playground.says("Segmented")
    page.get_by_role("radio", name="Box").tap()
    with page.expect_request("**/v1/jobs") as sent:
        touch(phone, playground.at(40, 40), playground.at(150, 150), playground.at(300, 300))
    assert sent.value.post_data_json["prompts"][0]["box"] == pytest.approx([40, 40, 300, 300], abs=6)


def test_a_finger_that_scrolls_draws_nothing(playground: Playground, phone: CDPSession) -> None:
    playground.open_example()
    requests = len([method for method, _ in playground.sent if method == "POST"])
    x, y = playground.at(480, 600)

    touch(phone, (x, y), (x, y - 60), (x, y - 160), (x, y - 260))

    expect(playground.page.locator("#masks .mask")).to_have_count(0)
    assert len([method for method, _ in playground.sent if method == "POST"]) == requests
