"""What the tests that are not in Rust have in common. NODE_BINARY is the node."""

import os
import random
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BINARY = os.environ["NODE_BINARY"]
DEADLINE = 30
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MOONGATE_")}


def wait_for(what, condition):
    """What the condition gives, as soon as that is something."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {DEADLINE} s")


GIVEN = set()


def free_port(*addresses, offsets=(0,)):
    """A port that is free on all these addresses, and so are those at the offsets; none that the kernel gives away."""
    while True:
        # Others choose at the same moment, each among its own; and what was given may not be in use yet.
        port = 20000 + os.getpid() % 10 * 1000 + random.randrange(1000)
        ports = {port + offset for offset in offsets}
        if ports & GIVEN:
            continue
        try:
            for address in addresses:
                for each in ports:
                    with socket.create_server((address, each)):
                        pass
        except OSError:
            continue
        GIVEN.update(ports)
        return port


def http(url, body=None, token=None):
    """Status and text of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=DEADLINE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode()
    except urllib.error.URLError as error:
        return None, str(error)


def end(process):
    process.kill()
    process.wait()


class Program:
    """A program that runs, and what it has printed."""

    def __init__(self, test, command, **environment):
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines = []
        self.reading = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self.reading.start()
        test.addCleanup(self.process.stdout.close)
        test.addCleanup(self.reading.join)
        test.addCleanup(end, self.process)

    def printed(self):
        return "".join(self.lines)

    def until(self, text):
        """Waits until it has printed this."""
        wait_for(f"{self.process.args} prints {text}", lambda: text in self.printed() or self.process.poll() is not None)
        assert text in self.printed(), self.printed()
        return self

    def stop(self):
        """Asks it to end; its exit code."""
        self.process.terminate()
        return self.process.wait(DEADLINE)
