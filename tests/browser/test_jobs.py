"""The list of jobs: live, with cancel and retry, and an address for each."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, expect

from maskfleet import Client, Refused
from maskfleet.jobs.schema.spec import parse_spec
from tests.browser.conftest import Playground


@pytest.fixture(scope="session")
def photo(repository: Path) -> bytes:
    return (repository / "api" / "static" / "playground" / "pictures" / "pebbles.jpg").read_bytes()


@contextmanager
def busy(api: Client, photo: bytes) -> Iterator[str]:
    """Keep the one worker busy with a long job; yield its id."""
    job = api.submit(photo=photo, mode="everything", params={"points_per_crop": 128}, outputs=["coco"])
    try:
        yield job.id
    finally:
        with suppress(Refused):  # it was canceled by the test
            api.cancel(job.id)
        api.wait(job.id, timeout_s=120)


def entry(playground: Playground, job_id: str) -> Locator:
    return playground.page.locator(f'#job-list [data-id="{job_id}"]')


def test_a_job_is_followed_from_the_queue_to_its_end(playground: Playground, api: Client, photo: bytes) -> None:
    playground.connect()
    with busy(api, photo) as running:
        playground.page.reload()
        expect(entry(playground, running)).to_contain_text("Running")
        expect(entry(playground, running)).to_contain_text(re.compile(r"finding masks \d+ %"))
        expect(entry(playground, running).locator("progress")).to_have_attribute("value", re.compile(r"0\.\d+"))
        waiting = api.submit(photo=photo, mode="box", prompts=[{"box": [30, 30, 300, 300]}])
        playground.page.reload()
        expect(entry(playground, waiting.id)).to_contain_text("Queued")
        expect(entry(playground, waiting.id)).to_contain_text("next in line")

        entry(playground, running).get_by_role("button", name="Cancel").click()

        expect(entry(playground, running)).to_contain_text("Canceled")
        expect(entry(playground, waiting.id)).to_contain_text("Done")
    assert api.get(running).status == "canceled"


def test_everything_is_canceled_by_its_own_button(playground: Playground, api: Client, photo: bytes) -> None:
    playground.open_example()
    with busy(api, photo):
        playground.page.locator("#everything").click()
        playground.says("queued")
        playground.page.get_by_role("button", name="Cancel", exact=True).first.click()
        playground.says("canceled")
    expect(playground.page.locator("#everything")).to_have_text("Everything")


def test_a_failed_job_says_why_and_is_retried(playground: Playground, api: Client, photo: bytes) -> None:
    upload_id = api.upload(photo)
    image = {"upload_id": upload_id, "sha256": "0" * 64}
    spec = parse_spec(json.dumps({"mode": "box", "image": image, "prompts": [{"box": [30, 30, 300, 300]}]}))
    job = api.submit(spec)
    first = api.wait(job.id, timeout_s=60)
    assert first.status == "failed"
    assert first.ended_at is not None
    playground.connect(f"&job={job.id}")

    expect(entry(playground, job.id)).to_contain_text("Failed")
    expect(entry(playground, job.id)).to_contain_text("image_changed")
    with playground.page.expect_response(f"**/v1/jobs/{job.id}/retry") as response:
        entry(playground, job.id).get_by_role("button", name="Retry").click()

    assert response.value.status == 202
    again = api.wait(job.id, timeout_s=60)
    assert again.ended_at is not None
    assert again.ended_at > first.ended_at
    expect(entry(playground, job.id)).to_have_attribute("data-status", "failed")
    expect(entry(playground, job.id).get_by_role("button", name="Retry")).to_be_visible()


def test_a_job_has_an_address_at_which_its_masks_and_files_are_shown(
    playground: Playground, api: Client, photo: bytes
) -> None:
    job = api.submit(photo=photo, mode="everything", params={"points_per_crop": 8}, outputs=["coco", "overlay"])
    ended = api.wait(job.id, timeout_s=120)
    assert ended.result is not None
    assert ended.result.masks > 0

    playground.connect(f"&job={job.id}")

    assert playground.page.url == f"{playground.stack.api_url}/#job={job.id}"
    expect(playground.page.locator("#masks .mask")).to_have_count(ended.result.masks)
    expect(entry(playground, job.id).get_by_role("link")).to_have_attribute("aria-current", "true")
    assert playground.pixel(480, 600) != (0x80, 0x88, 0x90)  # the overlay is behind the masks
    with playground.page.expect_download() as found:
        entry(playground, job.id).get_by_role("button", name="coco.json").click()
    assert found.value.suggested_filename == f"{job.id}-coco.json"


def test_a_job_of_this_tab_is_opened_again_with_its_picture(playground: Playground) -> None:
    playground.open_example()
    playground.click(480, 400)
    playground.says("Segmented")
    link = playground.page.locator("#job-list .job-link", has_text="Point").first
    address = link.get_attribute("href")
    playground.page.get_by_role("button", name="Open").click()
    playground.page.locator("#file").set_input_files(
        {"name": "other.png", "mimeType": "image/png", "buffer": plain_png()}
    )
    playground.says("Ready.")

    playground.page.locator(f'#job-list a[href="{address}"]').click()

    expect(playground.page.locator("#masks .mask")).to_have_count(3)
    assert playground.page.url.endswith(str(address))


def test_a_job_that_is_not_there_is_named(playground: Playground) -> None:
    playground.connect(f"&job=job_{'0' * 32}")

    playground.says("You have no job with this id")


def test_markup_in_names_is_shown_as_text(playground: Playground, api: Client, photo: bytes) -> None:
    name = "<img src=x onerror=alert(1)>"
    job = api.submit(photo=photo, mode="box", prompts=[{"box": [30, 30, 300, 300]}], metadata={"photo": name})
    api.wait(job.id, timeout_s=60)

    playground.connect(f"&job={job.id}")

    expect(entry(playground, job.id)).to_contain_text(name)
    expect(playground.page.locator("#masks .mask")).to_have_count(1)
    assert playground.page.locator("#job-list img").count() == 0


def plain_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), "white").save(buffer, "PNG")
    return buffer.getvalue()
