"""A headless Chromium, and how to wait for what it shows."""

import os

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

LIMIT = 60  # seconds that anything may take

options = webdriver.ChromeOptions()
for flag in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]:
    options.add_argument(flag)
options.add_argument("--no-proxy-server")
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
browser = webdriver.Chrome(options=options)
browser.set_page_load_timeout(LIMIT)


def wait(what, condition):
    WebDriverWait(browser, LIMIT, 0.05).until(lambda _: condition(), what)


def find(selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def complaints():
    return [entry["message"] for entry in browser.get_log("browser")]


def ok(what):
    """The line of what holds, if the browser has nothing to say against it."""
    said = complaints()
    assert not said, f"{what}: {said}"
    print(f"ok    {what}", flush=True)


def run(tests):
    try:
        tests()
    except Exception as error:
        print(f"FAIL  {error!r}\n{browser.current_url}\n{find('body').text[:3000]}")
        print(complaints())
        os._exit(1)
    finally:
        browser.quit()
