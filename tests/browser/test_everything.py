"""Everything: the picture is filled with masks, which are pointed at, filtered, hidden and coloured."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from maskfleet import Client
from tests.browser.conftest import Playground

NUMBERS = re.compile(r"score ([\d.]+) · stability ([\d.]+) · ([\d,]+) px")


@pytest.fixture
def filled(playground: Playground) -> Playground:
    playground.open_example()
    playground.fill()
    return playground


def last_job(api: Client) -> str:
    return next(job.id for job in api.jobs() if job.mode == "everything")


def set_slider(playground: Playground, name: str, value: float) -> None:
    playground.page.get_by_label(name).fill(str(value))


def test_everything_fills_the_picture_and_pointing_at_a_mask_shows_its_numbers(filled: Playground, api: Client) -> None:
    job = api.get(last_job(api))
    assert job.inline is not None
    usual = [mask for mask in job.inline.masks if mask.predicted_iou >= 0.88 and mask.stability_score >= 0.95]
    expect(filled.page.locator("#masks .mask")).to_have_count(len(usual))
    largest = max(usual, key=lambda mask: mask.area)

    # Its row lights it in the picture; the picture lights its row.
    filled.page.locator("#masks .pick").first.hover()
    expect(filled.page.locator("#masks .lit")).to_have_count(1)
    for x in range(40, 960, 40):
        filled.page.mouse.move(*filled.at(x, 400))
        if filled.page.locator("#tip").is_visible():
            break

    found = NUMBERS.search(filled.page.locator("#tip").inner_text())
    assert found is not None
    numbers = float(found[1]), float(found[2]), int(found[3].replace(",", ""))
    assert numbers in {
        (round(mask.predicted_iou, 3), round(mask.stability_score, 3), mask.area) for mask in job.inline.masks
    }
    assert numbers[2] <= largest.area
    expect(filled.page.locator("#masks .lit")).to_have_count(1)


def test_the_shown_masks_follow_the_thresholds_at_once(filled: Playground, api: Client) -> None:
    job = api.get(last_job(api))
    assert job.inline is not None
    rows = filled.page.locator("#masks .mask")
    requests = len(filled.sent)

    for score, stability in ((0.75, 0.85), (0.95, 0.85), (0.9, 0.97), (1, 1)):
        set_slider(filled, "Score at least", score)
        set_slider(filled, "Stability at least", stability)
        passing = [m for m in job.inline.masks if m.predicted_iou >= score and m.stability_score >= stability]
        assert rows.count() == len(passing)
        expect(filled.page.locator("#count")).to_have_text(f"{len(passing)} of {len(job.inline.masks)}")
    set_slider(filled, "Score at least", 0.75)
    set_slider(filled, "Stability at least", 0.85)
    set_slider(filled, "Area at least", 60)
    least = int(filled.page.locator("#least-area-value").inner_text().removesuffix(" px").replace(",", ""))
    assert least > 50
    assert rows.count() == len([m for m in job.inline.masks if m.area >= least])

    posts = [method for method, url in filled.sent[requests:] if method == "POST"]
    assert posts == []


def test_masks_are_hidden_coloured_and_shown_through(filled: Playground) -> None:
    page = filled.page
    # The largest of the shown masks, and a pixel of the picture that it alone covers.
    page.get_by_label("Area at least").fill("95")
    expect(page.locator("#masks .mask")).to_have_count(1)
    spot = next((x, y) for y in range(60, 700, 40) for x in range(60, 940, 40) if covered(filled, x, y))
    page.mouse.move(5, 5)
    plain = filled.pixel(*spot)

    page.locator("#masks input[type=color]").evaluate(
        "(input) => { input.value = '#ff0000'; input.dispatchEvent(new Event('change')); }"
    )
    page.get_by_label("Opacity").fill("100")
    wait_for_pixel(filled, spot, (255, 0, 0))
    page.locator("#masks input[type=checkbox]").uncheck()
    bare = wait_for_other_pixel(filled, spot, (255, 0, 0))
    page.locator("#masks input[type=checkbox]").check()
    wait_for_pixel(filled, spot, (255, 0, 0))
    page.get_by_label("Show masks").uncheck()
    wait_for_pixel(filled, spot, bare)
    page.get_by_label("Show masks").check()
    page.get_by_label("Opacity").fill("0")
    wait_for_pixel(filled, spot, bare)

    assert plain not in (bare, (255, 0, 0))


def covered(playground: Playground, x: int, y: int) -> bool:
    playground.page.mouse.move(*playground.at(x, y))
    return playground.page.locator("#tip").is_visible()


def wait_for_pixel(playground: Playground, spot: tuple[int, int], colour: tuple[int, int, int]) -> None:
    for _ in range(200):
        if all(abs(a - b) <= 2 for a, b in zip(playground.pixel(*spot), colour, strict=True)):
            return
        playground.page.evaluate("() => new Promise(requestAnimationFrame)")
    raise AssertionError(f"{playground.pixel(*spot)} is not {colour}")


def wait_for_other_pixel(
    playground: Playground, spot: tuple[int, int], colour: tuple[int, int, int]
) -> tuple[int, int, int]:
    for _ in range(200):
        if (found := playground.pixel(*spot)) != colour:
            return found
        playground.page.evaluate("() => new Promise(requestAnimationFrame)")
    raise AssertionError(f"It is still {colour}.")


def test_everything_is_undone_like_a_click(filled: Playground) -> None:
    filled.page.get_by_role("button", name="Undo").click()
    expect(filled.page.locator("#masks .mask")).to_have_count(0)
    expect(filled.page.locator("#filters")).to_be_hidden()

    filled.page.get_by_role("button", name="Redo").click()
    expect(filled.page.locator("#masks .mask").first).to_be_visible()
