"""Headless Chromium, and TensorBoard on loopback, for the tests that look at pages as a person does."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

T = TypeVar("T")

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 40  # seconds, on a machine that does other work
# elements that match a selector, also inside of shadow roots, in the order of the page
DEEP = """
const found = [];
const search = (root) => {
  for (const element of root.querySelectorAll('*')) {
    if (element.matches(arguments[0])) found.push(element);
    if (element.shadowRoot) search(element.shadowRoot);
  }
};
search(document);
return found;
"""


@contextlib.contextmanager
def chromium(*flags: str, **logs: str) -> Iterator[Chrome]:
    """A browser with a profile of its own, more flags, and more logs; skips the test, loudly, where there is none."""
    if missing := [str(path) for path in (CHROMIUM, DRIVER) if not path.exists()]:
        pytest.skip(f"NOT TESTED IN A BROWSER: there is no {', '.join(missing)}, run scripts/install_browser.sh")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", **logs})
        # with both paths given, selenium looks for nothing on the network
        driver = Chrome(options=options, service=ChromeService(str(DRIVER)))
        try:
            yield driver
        finally:
            driver.quit()


@contextlib.contextmanager
def tensorboard(log_dir: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows a folder, until the end of the block."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir), "--host", "127.0.0.1", "--port", "0"]
    command += ["--load_fast", "false", "--reload_interval", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    watchdog = threading.Timer(PATIENCE, server.kill)
    watchdog.start()
    try:
        lines = []
        for line in server.stderr:
            lines.append(line)
            if address := re.search(r"http://127\.0\.0\.1:\d+/", line):
                break
        else:
            raise RuntimeError(f"TensorBoard did not start: {''.join(lines)}")
        watchdog.cancel()
        threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
        yield address.group()
    finally:
        watchdog.cancel()
        server.terminate()
        server.wait(timeout=PATIENCE)


def wait_for(driver: Chrome, condition: Callable[[], T], what: str) -> T:
    """What a condition returns as soon as that is true, or an error that says what was waited for."""

    def met(_: Any) -> T:
        try:
            return condition()
        except Exception as error:
            if "stale element" in str(error):  # the page was just drawn anew
                return None  # type: ignore[return-value]
            raise

    return WebDriverWait(driver, PATIENCE, poll_frequency=0.2).until(met, f"waited in vain for {what}")


def find_all(driver: Chrome, selector: str) -> list[WebElement]:
    """All elements that a selector fits, shadow roots included."""
    return driver.execute_script(DEEP, selector)


def texts(driver: Chrome, selector: str) -> list[str]:
    """What is written in these elements, shown or not; without those where nothing is."""
    script = DEEP.replace("return found;", "return found.map((element) => element.textContent.trim());")
    return [text for text in driver.execute_script(script, selector) if text]


def num_colours(element: WebElement) -> int:
    """How many colours an element shows: one is blank."""
    image = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")
    return len(image.getcolors(image.width * image.height) or [])


def console_errors(driver: Chrome) -> list[str]:
    """What the pages complained about since this was called last."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
