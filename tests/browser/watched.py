"""A page in the browser: what it asks, what it complains of, and how a person uses it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.serve.process import Process

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page, Request

END = 256  # the end token's id: a text without it goes on until its last token


def expect(something: Locator | Page) -> Any:
    """Playwright's expectation, which waits."""
    from playwright.sync_api import expect as expecting

    return expecting(something, None)


class Watched:
    """`page` is Playwright's. `foreign`: requests to other hosts. `complaints`: errors on the console, but for those
    of answers whose status is in `refusals`."""

    def __init__(self, page: Page, server: Process):
        self.page, self.server = page, server
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusals: set[int] = set()
        page.on("request", self._request)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.server.address, "data:")):
            self.foreign.append(request.url)
        if request.method == "POST":
            self.asked.append((request.url.removeprefix(self.server.address), json.loads(request.post_data or "")))

    def _console(self, message: ConsoleMessage) -> None:
        refused = any(f"status of {status}" in message.text for status in self.refusals)
        if message.type in ("error", "warning") and not refused:
            self.complaints.append(message.text)

    def find(self, selector: str) -> Locator:
        """Where the selector matches."""
        return self.page.locator(selector)

    def settle(self) -> None:
        """Waits until nothing is written any more."""
        expect(self.find("#stop")).to_be_disabled()

    def set(self, **controls: Any) -> None:
        """Fills in controls by their names; those that are folded away are unfolded."""
        for part in ("#settings", ".more"):
            if not self.find(part).evaluate("part => part.open"):
                self.find(f"{part} > summary").click()
        for name, value in controls.items():
            self.find(f"#control-{name}").fill(str(value))

    def write(self, prompt: str, tokens: int = 24, **controls: object) -> None:
        """Writes as many tokens on a prompt, and waits for the last."""
        self.set(**{"max_tokens": tokens, "logit_bias": f"{END}: -100"} | controls)
        self.find("#prompt").fill(prompt)
        self.find("#write").click()
        expect(self.find(".token[data-index]").first).to_be_visible()
        self.settle()

    def redrawn(self, plot: Locator, change: Callable[[], None]) -> None:
        """Makes a change, and waits until the plot has become another picture."""
        picture = "plot => plot.querySelector('canvas').toDataURL()"
        before = plot.evaluate(picture)
        change()
        for _ in range(200):
            if plot.locator("canvas").count() == 1 and plot.evaluate(picture) != before:
                return
            self.page.wait_for_timeout(25)
        raise AssertionError("the picture stays as it was")

    def texts(self) -> list[str]:
        """Every text as it stands on the page, without its prompt."""
        return self.find(".words").evaluate_all(
            "all => all.map(words => [...words.querySelectorAll('[data-index]')].map(t => t.textContent).join(''))"
        )

    def api(self, path: str, body: dict[str, Any]) -> Any:
        """What the server answers to the same request without a stream."""
        plain = json.dumps({name: value for name, value in body.items() if name != "stream"}).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(self.server.address + path, plain, headers), timeout=30
        ) as answer:
            return json.load(answer)


def pictured(text: str) -> str:
    """A text without controls, as the page shows it."""
    codes = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
    return text.translate(codes | dict.fromkeys(range(0x7F, 0xA0), "\ufffd"))
