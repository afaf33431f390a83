"""A picture goes up, and clicks and boxes become masks: those that the service returns for the same prompts."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from maskfleet import Client
from tests.browser.conftest import Playground

DROP = """async ([data, name]) => {
    const file = new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type: "image/png" });
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(file);
    const dropped = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
    document.getElementById("view").dispatchEvent(dropped);
}"""


def areas_of(api: Client, spec: dict[str, Any]) -> list[int]:
    """Return the areas of a request's masks, as the service makes them for another client."""
    fields = {name: spec[name] for name in ("mode", "prompts", "params", "inline", "outputs")}
    job = api.submit(image_id=spec["image"]["image_id"], held_s=60, **fields)
    assert job.inline is not None
    return [mask.area for mask in job.inline.masks]


def shown_areas(playground: Playground) -> list[int]:
    labels = playground.page.locator("#candidates button").evaluate_all("all => all.map(b => b.ariaLabel)")
    return [int(re.search(r"([\d,]+) px", label)[1].replace(",", "")) for label in labels]  # type: ignore[index]  # it matches


def test_an_example_goes_straight_to_the_store_and_is_encoded_while_it_is_looked_at(playground: Playground) -> None:
    playground.open_example()

    store = playground.stack.s3_endpoint
    assert [url.startswith(store) for method, url in playground.sent if method == "PUT"] == [True]
    paths = [url.removeprefix(playground.stack.api_url) for method, url in playground.sent if method == "POST"]
    assert paths == ["/v1/uploads", "/v1/images"]
    assert playground.pixel(480, 500) != (0, 0, 0)


def test_a_photograph_is_chosen_from_the_disk(playground: Playground, repository: Path) -> None:
    playground.connect()
    with playground.page.expect_file_chooser() as chooser:
        playground.page.get_by_role("button", name="Choose a photograph").click()
    chooser.value.set_files(repository / "examples" / "coffee.jpg")

    playground.says("Ready.")
    expect(playground.page.locator("#model-note")).to_be_visible()  # the bundled model is no good at photographs


def test_a_photograph_is_dropped_on_the_page(playground: Playground, repository: Path) -> None:
    playground.connect()
    data = base64.b64encode((repository / "examples" / "coins.png").read_bytes()).decode()

    playground.page.evaluate(DROP, [data, "coins.png"])

    playground.says("Ready.")


def test_a_photograph_that_is_dropped_without_a_key_is_not_passed_over_in_silence(playground: Playground) -> None:
    playground.page.goto(playground.stack.api_url)
    expect(playground.page.locator("#key-form")).to_be_visible()

    playground.page.evaluate(DROP, ["", "coins.png"])

    playground.says("Connect to the service first.")


def test_a_photograph_goes_through_the_api_where_the_store_takes_none_from_pages(playground: Playground) -> None:
    playground.page.route(f"{playground.stack.s3_endpoint}/**", lambda route: route.abort())

    playground.open_example()

    assert [method for method, url in playground.sent if "/v1/images" in url and method == "POST"] == ["POST"]


def test_what_is_no_picture_is_refused_in_words(playground: Playground, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("Not a picture.")
    playground.connect()

    playground.page.locator("#file").set_input_files(tmp_path / "notes.jpg")

    expect(playground.page.locator("#status-row.failed")).to_be_visible()
    expect(playground.page.locator("#status")).not_to_be_empty()


def test_a_click_makes_the_mask_that_the_service_returns_for_it(playground: Playground, api: Client) -> None:
    playground.open_example()
    before = playground.pixel(440, 380)

    spec = playground.click(480, 400)
    playground.says("Segmented")

    assert spec["mode"] == "point"
    [prompt] = spec["prompts"]
    assert prompt["labels"] == [1]
    assert prompt["points"][0] == pytest.approx([480, 400], abs=1)
    assert playground.rows() == ["Object 1"]
    assert shown_areas(playground) == areas_of(api, spec)
    assert playground.pixel(440, 380) != before or playground.pixel(480, 500) != before


def test_shift_and_the_right_button_add_points_off_the_object(playground: Playground) -> None:
    playground.open_example()
    playground.click(480, 400)
    playground.says("Segmented")

    second = playground.click(200, 200, modifiers=["Shift"])
    playground.says("Segmented")
    third = playground.click(100, 650, button="right")

    assert [spec["prompts"][0]["labels"] for spec in (second, third)] == [[1, 0], [1, 0, 0]]
    assert playground.rows() == ["Object 1"]


def test_the_tool_decides_what_a_click_does(playground: Playground) -> None:
    playground.open_example()
    playground.click(480, 400)
    playground.says("Segmented")

    playground.page.get_by_role("radio", name="Remove").click()

    assert playground.click(200, 200)["prompts"][0]["labels"] == [1, 0]


def test_a_drag_draws_a_box_which_points_refine(playground: Playground, api: Client) -> None:
    playground.open_example()

    boxed = playground.drag((30, 30), (300, 300))
    playground.says("Segmented")
    refined = playground.click(165, 165)
    playground.says("Segmented")

    assert boxed["mode"] == refined["mode"] == "box"
    assert boxed["prompts"][0]["box"] == pytest.approx([30, 30, 300, 300], abs=1.5)
    assert refined["prompts"][0]["box"] == boxed["prompts"][0]["box"]
    assert refined["prompts"][0]["labels"] == [1]
    assert shown_areas(playground) == areas_of(api, refined)


def test_a_new_object_gets_a_mask_of_its_own(playground: Playground) -> None:
    playground.open_example()
    playground.click(165, 165)
    playground.says("Segmented")

    playground.page.get_by_role("button", name="New object").click()
    spec = playground.click(690, 160)
    playground.says("Segmented")

    assert len(spec["prompts"][0]["points"]) == 1
    expect(playground.page.locator("#masks .mask")).to_have_count(2)


def test_the_three_candidates_are_flipped_through(playground: Playground) -> None:
    playground.open_example()
    playground.click(480, 400)
    playground.says("Segmented")
    candidates = playground.page.locator("#candidates button")
    expect(candidates).to_have_count(3)

    shown = []
    for number in range(3):
        candidates.nth(number).click()
        expect(candidates.nth(number)).to_have_attribute("aria-checked", "true")
        shown.append(playground.page.locator("#masks .numbers").inner_text())
    playground.page.keyboard.press("2")

    expect(candidates.nth(1)).to_have_attribute("aria-checked", "true")
    assert shown[1] == playground.page.locator("#masks .numbers").inner_text()
    assert len(set(shown)) > 1
    assert [int(re.search(r"· ([\d,]+) px", text)[1].replace(",", "")) for text in shown] == shown_areas(playground)  # type: ignore[index]  # they match


def test_undo_takes_back_each_step_and_redo_repeats_it_without_a_request(playground: Playground) -> None:
    playground.open_example()
    playground.click(165, 165)
    playground.says("Segmented")
    one = playground.page.locator("#masks .numbers").inner_text()
    playground.click(690, 160, modifiers=["Shift"])
    playground.says("Segmented")
    expect(playground.page.locator("#masks .numbers")).to_be_visible()
    requests = len([url for method, url in playground.sent if method == "POST"])

    playground.page.get_by_role("button", name="Undo").click()
    assert playground.page.locator("#masks .numbers").inner_text() == one
    playground.page.keyboard.press("Control+z")
    expect(playground.page.locator("#masks .mask")).to_have_count(0)
    expect(playground.page.get_by_role("button", name="Undo")).to_be_disabled()
    playground.page.get_by_role("button", name="Redo").click()
    assert playground.page.locator("#masks .numbers").inner_text() == one

    assert len([url for method, url in playground.sent if method == "POST"]) == requests


def test_a_service_that_is_gone_is_named(playground: Playground) -> None:
    playground.open_example()
    playground.page.route("**/v1/jobs", lambda route: route.abort())

    playground.page.mouse.click(*playground.at(480, 400))

    playground.says("The service does not answer.")
