"""An example as `examples/run` starts it, with a browser for its pages."""

import os
import re
import signal
from pathlib import Path

import redis
from browser import Browser
from support import BINARY, DEADLINE, ROOT, Program, free_port, wait_for

# A dead node's clients are taken out so soon, and not in 15 s.
NODE_TTL = "2s"


class Example:
    """For a test class: each test has the example to itself. `arguments` are those of `examples/run`."""

    environment = {}

    @classmethod
    def setUpClass(cls):
        cls.browser = Browser(cls)

    def setUp(self):
        port = free_port("127.0.0.1", offsets=(0, 1, 7, 8, 10, 11))
        environment = {"PORT": str(port), "MOONGATE_NODE_TTL": NODE_TTL} | self.environment
        self.program = Program(self, [ROOT / "examples/run", *self.arguments, BINARY], **environment)
        self.addCleanup(self.stop_by_ctrl_c)
        self.program.until("Ctrl-C ends all")
        self.address = f"http://127.0.0.1:{port + 8}"
        self.apis = [f"http://127.0.0.1:{port + 1}", f"http://127.0.0.1:{port + 11}"]
        self.redis = redis.Redis(port=port + 7, decode_responses=True, socket_timeout=DEADLINE)
        self.addCleanup(self.redis.close)

    def stop_by_ctrl_c(self):
        self.program.process.send_signal(signal.SIGINT)
        self.assertEqual(self.program.process.wait(DEADLINE), 0, self.program.printed())
        # All have let go of what they print to.
        self.program.reading.join(DEADLINE)
        self.assertFalse(self.program.reading.is_alive(), "a process is left")

    def starts(self, number):
        """The process ids that a node has had."""
        return [int(pid) for pid in re.findall(rf"node {number} runs;.*kill -9 (\d+)", self.program.printed())]

    def node_pid(self, number):
        return self.starts(number)[-1]

    def kill_node(self, number):
        killed = self.node_pid(number)
        os.kill(killed, signal.SIGKILL)
        wait_for("it starts again", lambda: self.node_pid(number) != killed)


def looks():
    """Each way in which a page may be looked at: its name, its size, its colours."""
    for device, width, height in (("desk", 1100, 700), ("phone", 360, 720)):
        for scheme in ("light", "dark"):
            yield f"{device}-{scheme}", (width, height), scheme


def look(page, size, scheme):
    """Shows a page so. It must not be wider than its window."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    page.command("Emulation.setDeviceMetricsOverride", **metrics)
    # At rest: what fades from one colour to another would be pictured between them.
    media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    page.command("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in media.items()])
    wider = page.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider == 0, f"{wider} pixels too wide for {width}"


def picture(page, name):
    """Leaves a picture of the page in the directory SCREENSHOTS, where there is one."""
    if album := os.environ.get("SCREENSHOTS"):
        page.screenshot(Path(album, f"{name}.png"))
