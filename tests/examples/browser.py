"""A real browser: headless Chromium, driven over its DevTools protocol, as tests/it/browser.rs does it in Rust."""

import base64
import itertools
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from support import DEADLINE, end, wait_for
from websockets.sync.client import connect

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --disable-breakpad --no-first-run
    --no-default-browser-check --disable-background-networking --disable-component-update --disable-sync --no-proxy-server
    --lang=en-US --window-size=1280,900 --remote-debugging-port=0 about:blank""".split()
# Whatever a browser likes to look up at home, it finds nobody there.
FLAGS.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost")


class Browser:
    """A running browser, ended with the test class that started it."""

    def __init__(self, test_class):
        profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        test_class.enterClassContext(profile)
        command = [os.environ.get("CHROMIUM", "chromium"), f"--user-data-dir={profile.name}", *FLAGS]
        # What it says goes to a file: a pipe would have to be read on.
        said = test_class.enterClassContext(tempfile.NamedTemporaryFile("r+"))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        test_class.addClassCleanup(end, process)

        def address():
            text = Path(said.name).read_text()
            assert process.poll() is None, f"the browser has ended: {text}"
            return re.search("DevTools listening on (.*)\n", text)

        # A screenshot comes as one message.
        self.socket = test_class.enterClassContext(connect(wait_for("the browser", address)[1], max_size=None, proxy=None))
        self.numbers = itertools.count(1)
        self.complaints = {}
        # All its processes are gone before its profile is wiped.
        test_class.addClassCleanup(process.wait, DEADLINE)
        test_class.addClassCleanup(self.call, "Browser.close")

    def call(self, method, session=None, **params):
        """Any command of the protocol. What pages complain about meanwhile is kept."""
        number = next(self.numbers)
        command = {"id": number, "method": method, "params": params}
        self.socket.send(json.dumps(command | ({"sessionId": session} if session else {})))
        while True:
            said = json.loads(self.socket.recv(DEADLINE))
            if said.get("id") == number:
                assert "error" not in said, f"{method}: {said}"
                return said["result"]
            if is_complaint(said.get("method"), said.get("params")):
                self.complaints.setdefault(said["sessionId"], []).append(said["params"])

    def profile(self, test):
        """A profile with cookies of its own: what another browser would have."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        test.addCleanup(self.call, "Target.disposeBrowserContext", browserContextId=context)
        return context


def is_complaint(event, about):
    """Whether an event is something that a page should not have caused."""
    if event == "Runtime.consoleAPICalled":
        return about["type"] == "error"
    if event == "Log.entryAdded":
        # An HTTP status of 4xx, or a node that is gone, is none: the page shows it.
        return about["entry"]["level"] == "error" and about["entry"]["source"] != "network"
    return event == "Runtime.exceptionThrown"


class Page:
    """A tab of a profile."""

    def __init__(self, browser, profile, url):
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank", browserContextId=profile)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.command(f"{domain}.enable")
        # Several tabs of several users are written in at once.
        self.command("Emulation.setFocusEmulationEnabled", enabled=True)
        self.go(url)

    def command(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def go(self, url):
        self.eval("window.left = true")
        gone = self.command("Page.navigate", url=url)
        assert "errorText" not in gone, f"{url}: {gone}"
        self.until("!window.left && document.readyState === 'complete'")

    def eval(self, script):
        """The value of an expression, awaited if it is a promise."""
        how = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.command("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in answer, f"{script}: {answer}"
        return answer["result"].get("value")

    def until(self, condition):
        """Waits until an expression is true."""
        deadline = time.monotonic() + DEADLINE
        while not self.eval(f"Boolean({condition})"):
            shown = f"not within {DEADLINE} s: {condition}"
            assert time.monotonic() < deadline, f"{shown}\n{self.complaints()}\n{self.eval('document.body.innerText')}"
            time.sleep(0.02)

    def click(self, selector):
        """A click with the mouse in the middle of an element, which must be what is seen there."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.until(f"{element}?.getClientRects().length && !{element}.disabled")
        x, y, seen = self.eval(f"""(() => {{
            {element}.scrollIntoView({{block: 'center', inline: 'center', behavior: 'instant'}});
            const box = {element}.getBoundingClientRect();
            const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
            return [x, y, {element}.contains(document.elementFromPoint(x, y))];
        }})()""")
        assert seen, f"something lies above {selector}"
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text):
        """Writes where the focus is, and presses Enter."""
        self.command("Input.insertText", text=text)
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.command("Input.dispatchKeyEvent", type="keyDown", text="\r", **enter)
        self.command("Input.dispatchKeyEvent", type="keyUp", **enter)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))

    def complaints(self):
        return self.browser.complaints.get(self.session, [])

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)
