"""Drives a browser over applications behind agents: drive.py GATEWAY_PORT [SCREENSHOT].

Each application is what it would be if the browser reached it directly, and no resource fails. One line
for each; exits 1 with the first that is not so.
"""

import json
import sys
import tempfile

from chromium import browser, find, ok, run, wait

port = sys.argv[1]


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
    ok(name)


def single_page(name, base):
    browser.get(base + "/")
    expected = {"title": "FastAPI", "large": 5_000_000, "event": "3", "echo": "you said hello"}

    def state():
        text = find("#state").text
        return json.loads(text) if text.startswith("{") else {}

    wait("the application", lambda: state() == expected)
    ok(name)


def docs(name, base):
    browser.get(base + "/docs")
    wait("the description", lambda: browser.title == "FastAPI seen")
    ok(name)


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
    ok(name)


def apart(name, one, other):
    """A cookie of one application is not the other's."""
    browser.get(one + "/")
    browser.add_cookie({"name": "secret", "value": "x"})
    assert browser.get_cookie("secret")
    browser.get(other + "/")
    assert not browser.get_cookie("secret"), "its cookie is there too"
    assert not browser.get_cookie("session"), "its session is there too"
    ok(name)


def applications():
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


run(applications)
