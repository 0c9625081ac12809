"""Drives a browser over applications behind agents: drive.py GATEWAY_PORT [SCREENSHOT].

Each application is what it would be if the browser reached it directly, and no resource fails. One line
for each; exits 1 with the first that is not so.
"""

import json
import os
import sys
import tempfile

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

LIMIT = 20  # seconds that anything may take

port = sys.argv[1]
options = webdriver.ChromeOptions()
for flag in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]:
    options.add_argument(flag)
options.add_argument("--no-proxy-server")
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
browser = webdriver.Chrome(options=options)
browser.set_page_load_timeout(LIMIT)


def wait(what, condition):
    WebDriverWait(browser, LIMIT).until(lambda _: condition(), what)


def find(selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def no_complaints(name):
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert not complaints, f"{name}: {complaints}"
    print(f"ok    {name}", flush=True)


def flask(name, base):
    browser.get(base + "/")
    wait("the redirect to the login", lambda: browser.title == "login")
    assert browser.current_url == base + "/login", browser.current_url
    find("input").send_keys("anna")
    find("button").click()
    wait("the login", lambda: browser.title == "home")
    assert browser.current_url == base + "/", browser.current_url
    assert find("h1").text == "Hello anna"
    assert find("h1").value_of_css_property("color") == "rgba(1, 2, 3, 1)", "no style sheet"
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(3_000_000))
        file.flush()
        find("input").send_keys(file.name)
        find("button").click()
        wait("the upload", lambda: browser.title == "sent")
    assert find("p").text == "3000000 bytes", find("p").text
    no_complaints(name)


def single_page(name, base):
    browser.get(base + "/")
    expected = {"title": "FastAPI", "large": 5_000_000, "event": "3", "echo": "you said hello"}

    def state():
        text = find("#state").text
        return json.loads(text) if text.startswith("{") else {}

    wait("the application", lambda: state() == expected)
    no_complaints(name)


def docs(name, base):
    browser.get(base + "/docs")
    wait("the description", lambda: browser.title == "FastAPI seen")
    no_complaints(name)


def django(name, base):
    browser.get(base + "/admin/")
    wait("the login", lambda: "Log in" in browser.title)
    find("#id_username").send_keys("anna")
    find("#id_password").send_keys("a long secret")
    find("input[type=submit]").click()
    wait("the admin", lambda: "Site administration" in browser.title)
    assert browser.current_url == base + "/admin/", browser.current_url
    if len(sys.argv) > 2:
        browser.set_window_size(900, 500)
        browser.save_screenshot(sys.argv[2])
    no_complaints(name)


def apart(name, one, other):
    """A cookie of one application is not the other's."""
    browser.get(one + "/")
    browser.add_cookie({"name": "secret", "value": "x"})
    assert browser.get_cookie("secret")
    browser.get(other + "/")
    assert not browser.get_cookie("secret"), "its cookie is there too"
    assert not browser.get_cookie("session"), "its session is there too"
    print(f"ok    {name}")


try:
    flask("Flask by a name: login, style sheet, upload", f"http://flask.localhost:{port}")
    browser.delete_all_cookies()
    flask("Flask below a path", f"http://localhost:{port}/agents/flask")
    single_page(
        "a single-page application by a name: FastAPI, events, a WebSocket",
        f"http://spa.localhost:{port}",
    )
    docs("FastAPI's documentation by a name", f"http://spa.localhost:{port}")
    docs("FastAPI's documentation below a path", f"http://localhost:{port}/agents/spa")
    apart(
        "applications apart by their names",
        f"http://flask.localhost:{port}",
        f"http://spa.localhost:{port}",
    )
    django("Django's admin by a name: a login with CSRF", f"http://django.localhost:{port}")
except Exception as error:
    print(f"FAIL  {error!r}\n{browser.current_url}\n{browser.page_source[:2000]}")
    print([entry["message"] for entry in browser.get_log("browser")])
    os._exit(1)
finally:
    browser.quit()
