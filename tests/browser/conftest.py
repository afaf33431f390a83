"""The playground in Debian's Chromium, on one whole stack with the bundled model for all tests.

Nothing is skipped: without the browser the tests fail (CONTRIBUTING.md says what to install).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from maskfleet import Client
from maskfleet.stack.process import StackLine

#: A machine under load is slow; nothing here is a measurement.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert path, "Install Chromium (Debian: apt-get install chromium), or name it in CHROMIUM."
    with sync_playwright() as playwright:
        # Its sandbox refuses to start as root, as in CI's containers; it loads nothing but this service's own page.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Playground:
    """The page in a browser window of its own, and what it sent and complained of."""

    page: Page
    stack: StackLine
    sent: list[tuple[str, str]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def connect(self, fragment: str = "") -> None:
        """Open the link that ``maskfleet up`` prints."""
        self.page.goto(f"{self.stack.api_url}/#key={self.stack.api_key}{fragment}")
        expect(self.page.locator("#jobs")).to_be_visible()  # the key was accepted

    def open_example(self, name: str = "Pebbles") -> None:
        self.connect()
        self.page.get_by_role("button", name=name).click()
        self.says("Ready.")

    def says(self, text: str) -> None:
        expect(self.page.locator("#status")).to_contain_text(text)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a pixel of the picture is in the window."""
        box = self.page.locator("#picture").bounding_box()
        assert box is not None
        width, height = self.size
        scale = min(box["width"] / width, box["height"] / height)
        left, top = box["x"] + (box["width"] - width * scale) / 2, box["y"] + (box["height"] - height * scale) / 2
        return left + x * scale, top + y * scale

    #: Of the picture that is open.
    size: tuple[int, int] = (960, 720)

    def click(self, x: float, y: float, *, modifiers: list[Any] | None = None, button: Any = "left") -> dict[str, Any]:
        """Click on a pixel of the picture; return the job that this sent."""
        for key in modifiers or []:
            self.page.keyboard.down(key)
        with self.page.expect_request(lambda request: request.url.endswith("/v1/jobs")) as sent:
            self.page.mouse.click(*self.at(x, y), button=button)
        for key in modifiers or []:
            self.page.keyboard.up(key)
        return dict(sent.value.post_data_json)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> dict[str, Any]:
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*end), steps=4)
        with self.page.expect_request(lambda request: request.url.endswith("/v1/jobs")) as sent:
            self.page.mouse.up()
        return dict(sent.value.post_data_json)

    def fill(self) -> None:
        """Press Everything, and wait until the masks are there."""
        self.page.locator("#everything").click()
        self.says("The sliders choose which are shown.")

    def rows(self) -> list[str]:
        """Return the labels of the masks in the list."""
        return self.page.locator("#masks .pick").all_inner_texts()

    def pixel(self, x: float, y: float) -> tuple[int, int, int]:
        """Return the colour that a pixel of the picture is shown in."""
        script = """([x, y]) => {
            const canvas = document.getElementById("picture");
            const bounds = canvas.getBoundingClientRect();
            const density = canvas.width / bounds.width;
            const at = [(x - bounds.left) * density, (y - bounds.top) * density];
            return [...canvas.getContext("2d").getImageData(...at, 1, 1).data].slice(0, 3);
        }"""
        red, green, blue = self.page.evaluate(script, list(self.at(x, y)))
        return red, green, blue


@pytest.fixture
def window() -> dict[str, Any]:
    """What the browser's window is like; tests replace it."""
    return {"viewport": {"width": 1440, "height": 900}}


@pytest.fixture
def context(browser: Browser, window: dict[str, Any]) -> Iterator[BrowserContext]:
    context = browser.new_context(**window, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


@pytest.fixture
def playground(context: BrowserContext, running_stack: StackLine) -> Iterator[Playground]:
    """The page, in a new window.  Fails the test if the page broke, or its policy refused it something."""
    shown = Playground(context.new_page(), running_stack)
    shown.page.on("request", lambda request: shown.sent.append((request.method, request.url)))
    shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
    shown.page.on(
        "console", lambda message: shown.complaints.append(message.text) if "Policy" in message.text else None
    )
    yield shown
    assert shown.complaints == []


@pytest.fixture(scope="session")
def api(running_stack: StackLine) -> Iterator[Client]:
    with Client(running_stack.api_url, running_stack.api_key) as client:
        yield client


@pytest.fixture(scope="session")
def pictures(repository: Path) -> Path:
    """Where the screenshots of the documents are."""
    return repository / "docs" / "pictures"
