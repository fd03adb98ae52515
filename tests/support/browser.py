"""Headless Chromium for tests: a page, what it complained about, what it asked the network for, how it looks.

with open_browser() as browser:
    page = browser.open((folder / "index.html").as_uri(), width=400)
    assert page.errors == [] and page.requests == []
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser as PlaywrightBrowser
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",  # root, as in CI containers
    "--disable-gpu",
    # The browser's own calls home fail noisily on a closed network and are not the page's.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
INSTALL_LIMIT_S = 300
LOCAL_SCHEMES = frozenset({"file", "data", "blob", "about"})


@dataclass
class OpenPage:
    """A loaded page: `page` is Playwright's own, for clicks and selectors; the lists grow while it lives."""

    page: Page
    errors: list[str] = field(default_factory=list)  # console errors and uncaught exceptions
    requests: list[str] = field(default_factory=list)  # URLs that left the machine's files: http, https, ws

    def screenshot(self, path: Path, *, full_page: bool = True) -> Path:
        """Write a PNG of the page, of all its length unless ``full_page`` is false; return ``path``."""
        self.page.screenshot(path=str(path), full_page=full_page)
        return path

    def overflow_px(self) -> int:
        """How many pixels the page is wider than its window; above 0 a reader must scroll sideways."""
        overflow: int = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return max(0, overflow)


class Browser:
    """One running Chromium; every page gets a fresh profile."""

    def __init__(self, chromium: PlaywrightBrowser) -> None:
        self.chromium = chromium

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> OpenPage:
        """Load ``url`` in a window of ``width`` x ``height`` CSS pixels; wait until its scripts have settled."""
        context = self.chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        opened = OpenPage(context.new_page())

        def on_console(message: ConsoleMessage) -> None:
            if message.type == "error":
                opened.errors.append(message.text)

        def on_request(request: Request) -> None:
            if urlsplit(request.url).scheme not in LOCAL_SCHEMES:
                opened.requests.append(request.url)

        opened.page.on("console", on_console)
        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.page.on("request", on_request)
        opened.page.on("websocket", lambda socket: opened.requests.append(socket.url))
        opened.page.goto(url, wait_until="load")
        opened.page.wait_for_load_state("networkidle")
        return opened


def find_chromium() -> Path:
    """Debian's Chromium, installed when it is missing and this is root; otherwise the test is skipped."""
    if CHROMIUM.exists():
        return CHROMIUM
    if os.geteuid() == 0 and shutil.which("apt-get"):
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            command = ["apt-get", *arguments]
            subprocess.run(command, env=env, timeout=INSTALL_LIMIT_S, capture_output=True, check=False)
        if CHROMIUM.exists():
            return CHROMIUM
    pytest.skip(f"{CHROMIUM} is missing: run `sudo apt-get install chromium`, then this test again.")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium and end it with the block; one per test module is enough, it takes about a second."""
    executable = find_chromium()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(executable), args=list(FLAGS))
        try:
            yield Browser(chromium)
        finally:
            chromium.close()
