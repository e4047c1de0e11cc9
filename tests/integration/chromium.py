"""A headless Chromium for tests of pages: fresh profile, no network, its console and requests kept.

Chromium and its driver come from the system (Debian: `chromium`, `chromium-driver`). Where they
are missing the tests are skipped with the reason, unless STARGATE_REQUIRE_CHROMIUM=1.
"""

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# What Debian calls them, and what others do.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root in a container, where Chromium's own sandbox can't
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm is 64 MB in many containers
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--window-size=1280,900",
)


@dataclass(frozen=True)
class Browser:
    """A running Chromium. `driver` is Selenium's."""

    driver: Any

    def open(self, page: Path, fragment: str = "") -> None:
        """Opens a file as from disk and waits for the load event."""
        # Only the fragment differing would not load the page again.
        self.driver.get("about:blank")
        self.requested()  # those of the browser's own first page are not the file's
        self.driver.get(page.resolve().as_uri() + fragment)

    def run(self, script: str, *arguments: Any) -> Any:
        """What the script returns, run in the page."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any, seconds: float = 20.0) -> None:
        """Until the script returns something true; events take their time on a busy machine."""
        deadline = time.monotonic() + seconds
        while not self.run(script, *arguments):
            assert time.monotonic() < deadline, f"{seconds:g} s passed, but not yet: {script}"
            time.sleep(0.02)

    def resize(self, width: int, height: int = 900) -> None:
        """A viewport of exactly this size; a phone's below 500 pixels, as touch devices are."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, theme: str) -> None:
        """What the system says about "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def print_to(self, path: Path) -> None:
        """The page as a PDF, with the style for print."""
        answer = self.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
        path.write_bytes(base64.b64decode(answer["data"]))

    def console_errors(self) -> list[str]:
        """Messages of level SEVERE since the last call: script errors and refused requests."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def requested(self) -> list[str]:
        """URLs of all requests since the last call, whether they were let out or not."""
        messages = (json.loads(entry["message"]) for entry in self.driver.get_log("performance"))
        sent = [m["message"] for m in messages]
        return [
            str(message["params"]["request"]["url"])
            for message in sent
            if message["method"] == "Network.requestWillBeSent"
        ]


def each(selector: str) -> str:
    """JavaScript for a list of the elements."""
    return f"[...document.querySelectorAll({json.dumps(selector)})]"


FOUND = "document.getElementById('found').textContent"


class ReportBrowser(Browser):
    """On the page of a report."""

    def listed(self) -> list[str]:
        """Ids of the rows that are shown."""
        hashes = f"{each('#dialogue-list a')}.map(a => decodeURIComponent(a.hash))"
        return [shown[10:] for shown in self.run(f"return {hashes}")]

    def found(self) -> str:
        return str(self.run(f"return {FOUND}"))

    def texts(self, selector: str) -> list[str]:
        return list(self.run(f"return {each(selector)}.map(e => e.textContent)"))

    def press(self, key: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(key).perform()

    def set_filter(self, name: str, value: str | bool) -> None:
        """As a user would, and waits until the list has followed."""
        self.driver.execute_async_script(
            """
            const [name, value, done] = arguments;
            const field = document.getElementById('filters').elements[name];
            if (typeof value === 'boolean') field.checked = value; else field.value = value;
            new MutationObserver((_, self) => { self.disconnect(); done(); })
              .observe(document.getElementById('dialogue-list'), { childList: true });
            field.dispatchEvent(new Event('input', { bubbles: true }));
            """,
            name,
            value,
        )


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Chromium with an empty profile in a folder, closed at the end."""
    program, driver_program = _programs()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With the driver's path given, Selenium looks for none and downloads none.
    service = webdriver.ChromeService(executable_path=driver_program)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver)
    finally:
        driver.quit()


def _programs() -> tuple[str, str]:
    """Paths of Chromium and its driver. Skips the test where something is missing."""
    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    try:
        import selenium  # noqa: F401 - only whether it is there
    except ImportError:
        _give_up("Selenium is not installed (pip install selenium)")
    if program is None or driver is None:
        missing = "chromium" if program is None else "chromedriver"
        _give_up(f"{missing} is not installed (Debian: apt-get install chromium chromium-driver)")
    return program, driver


def _give_up(reason: str) -> None:
    if os.environ.get("STARGATE_REQUIRE_CHROMIUM") == "1":
        pytest.fail(f"STARGATE_REQUIRE_CHROMIUM=1, but {reason}")
    pytest.skip(reason)
