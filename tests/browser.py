"""A real browser for the tests marked "browser": headless Chromium, driven by Selenium, its requests on record."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator

from selenium import webdriver

#: Names under which distributions install the two programs.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def open_page(path: pathlib.Path, width: int = 1200, height: int = 900) -> Iterator[webdriver.Chrome]:
    """Opens a file in headless Chromium; ``driver.find_element`` and so on are Selenium's."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver_program = shutil.which("chromedriver")
    assert browser and driver_program, "install chromium and chromedriver (Debian: chromium chromium-driver)"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    try:
        driver.get(path.resolve().as_uri())
        yield driver
    finally:
        driver.quit()


def requests(driver: webdriver.Chrome) -> list[str]:
    """Addresses that were asked for since the last call: not the page's own, not data, not what its policy blocked."""
    asked, blocked = {}, set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        method, params = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            asked[params["requestId"]] = params["request"]["url"]
        elif method == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            blocked.add(params["requestId"])
    own = driver.current_url.split("#")[0]
    sent = [url for number, url in asked.items() if number not in blocked]
    return [url for url in sent if url != own and not url.startswith(("data:", "chrome:"))]


def complaints(driver: webdriver.Chrome) -> list[str]:
    """What stands in the browser's console: script errors and what the page's policy stopped."""
    return [entry["message"] for entry in driver.get_log("browser")]
