"""Drives a browser over the live page: live.py GATEWAY_PORT AGENT_PID [FOLDER].

The page shows the chain as it is: a ping that is pressed is answered and seen moving, an agent that is killed
is seen to go, and nothing is complained of. With a folder, screenshots in light and dark go there. One line for
each; exits 1 with the first that is not so.
"""

import json
import os
import signal
import sys
import urllib.error
import urllib.request

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from chromium import browser, find, ok, run, wait

port, agent = sys.argv[1], int(sys.argv[2])
folder = sys.argv[3] if len(sys.argv) > 3 else None
base = f"http://127.0.0.1:{port}"


def count(selector):
    return len(browser.find_elements(By.CSS_SELECTOR, selector))


def get(path):
    with urllib.request.urlopen(base + path) as answer:
        return answer.read()


def picture(name, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    if folder:
        browser.save_screenshot(os.path.join(folder, name))


def page():
    browser.set_window_size(1180, 980)
    browser.get(base + "/")
    wait("the connection", lambda: count('#connection[data-connected="true"]') == 1)
    wait("the agent", lambda: count('#agents [data-agent="demo"][data-state="ready"]') == 1)
    ok("the page shows the chain")

    find("#ping").click()
    wait("a moving request", lambda: count("#path .dot") > 0)
    wait("the answer", lambda: '"pong"' in find("#ping-answer").text)
    assert "200" in find("#ping-answer").text, find("#ping-answer").text
    assert "broker" in find("#ping-answer").text, "no Server-Timing"
    wait("its row", lambda: count('#requests tbody tr[data-status="200"]') == 1)
    ok("a ping is pressed, answered, and seen on its way")

    for _ in range(30):
        get("/ping")
    # What a stranger sends is text, whatever it is.
    try:
        get("/agents/nobody/%3Cimg%20src=x%20onerror=alert(1)%3E")
    except urllib.error.HTTPError as error:
        assert error.code == 503, error
    wait("the failure", lambda: count('#requests tbody tr[data-status="503"]') == 1)
    assert "no agent" in find("#requests tbody").text
    ok("a failure is shown, with its reason")

    for hop in ["client", "gateway", "broker", "agent", "service"]:
        find(f"#hop-{hop}").send_keys(Keys.ENTER)
        wait(f"the panel of {hop}", lambda: find("#hop-panel").is_displayed())
        assert len(find("#hop-panel").text) > 100, find("#hop-panel").text
    assert "src/" in find("#hop-panel").text
    find("#hop-broker").send_keys(Keys.ENTER)
    wait("a topic", lambda: "recado/agents/" in find("#hop-panel").text or "api/ping/request" in find("#hop-panel").text)
    picture("page-dark.png", "dark")
    find("#hop-broker").send_keys(Keys.ENTER)
    picture("page-light.png", "light")
    ok("each hop says what happens there, by keyboard")

    browser.set_window_size(360, 740)
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(overflow) <= 0, "it scrolls sideways on a phone"
    browser.set_window_size(1180, 980)
    ok("it fits on a phone")

    os.kill(agent, signal.SIGKILL)
    gone = '#agents [data-agent="demo"]:not([data-state="ready"])'
    wait("the agent's end", lambda: count(gone) == 1)
    lost = json.loads(get("/agents"))["lost"]
    assert [it["agent"] for it in lost] == ["demo"], lost
    ok("an agent that is killed is seen to go")


run(page)
