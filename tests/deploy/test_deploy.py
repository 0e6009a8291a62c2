"""What `deploy/nginx.conf` and `make cluster` promise, tried on the real things.

scripts/check-deploy runs it; NODE_BINARY is the node.
"""

import errno
import json
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

from support import BINARY, DEADLINE, ROOT, end, free_port, http, wait_for
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

TOKEN = "secret"


class Names(threading.Thread):
    """A name server that knows one answer: the nodes' addresses."""

    def __init__(self, addresses):
        super().__init__(daemon=True)
        self.addresses = addresses
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                query, peer = self.socket.recvfrom(512)
            except OSError:
                return
            question = query[12 : query.index(0, 12) + 5]
            header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(self.addresses), 0, 0)
            records = (b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 600, 4) + socket.inet_aton(a) for a in self.addresses)
            self.socket.sendto(header + question + b"".join(records), peer)


class BehindNginx(unittest.TestCase):
    """Two nodes behind deploy/nginx.conf, with no more of it changed than addresses, ports and the directory."""

    NODES = ("127.0.0.2", "127.0.0.3")

    def setUp(self):
        clients, api = free_port(*self.NODES), free_port(*self.NODES)
        self.clients, self.api = free_port("127.0.0.1"), free_port("127.0.0.1")
        names = Names(self.NODES)
        self.addCleanup(names.socket.close)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)

        self.nodes = {}
        for number, address in enumerate(self.NODES):
            environment = {
                "MOONGATE_LISTEN": f"{address}:{clients}",
                "MOONGATE_API_LISTEN": f"{address}:{api}",
                "MOONGATE_API_TOKEN": TOKEN,
                "MOONGATE_API_MAX_BODY": "4MiB",
                "MOONGATE_LAN_PORT": str(2900 + number),
                "MOONGATE_DRAIN": "2s",
                "MOONGATE_LOG": "error",
            }
            node = subprocess.Popen([BINARY], env=environment)
            self.addCleanup(end, node)
            self.nodes[f"{2900 + number:04x}"] = (node, f"http://{address}:{api}")

        text = (ROOT / "deploy/nginx.conf").read_text()
        for old, new in {
            "/tmp/": f"{directory.name}/",
            "resolver 127.0.0.11 ": f"resolver 127.0.0.1:{names.port} ",
            "listen 7272;": f"listen 127.0.0.1:{self.clients};",
            "listen 7273;": f"listen 127.0.0.1:{self.api};",
            " node:7272;": f" node:{clients};",
            " node:7273;": f" node:{api};",
        }.items():
            self.assertIn(old, text)
            text = text.replace(old, new)
        file = Path(directory.name, "nginx.conf")
        file.write_text(text)
        # As in the container, it is not root.
        plain = {}
        if os.geteuid() == 0:
            os.chown(directory.name, 65534, 65534)
            plain = {"user": 65534, "group": 65534, "extra_groups": []}
        nginx = ["nginx", "-p", directory.name, "-c", str(file), "-e", "stderr"]
        checked = subprocess.run([*nginx, "-t"], capture_output=True, text=True, check=False, **plain)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        self.assertNotIn("[warn]", checked.stderr)
        self.nginx = subprocess.Popen([*nginx, "-g", "daemon off;"], **plain)
        # A killed master would leave its workers.
        self.addCleanup(lambda: (self.nginx.terminate(), self.nginx.wait()))
        for _, api in self.nodes.values():
            wait_for("node", lambda url=api: http(f"{url}/readyz")[0] == 200)
        wait_for("nginx", lambda: http(self.url("/readyz"))[0] == 200)

    def url(self, path):
        return f"http://127.0.0.1:{self.api}{path}"

    def client(self):
        """A client and its id; the third part of which is its node's LAN_PORT."""
        client = self.enterContext(connect(f"ws://127.0.0.1:{self.clients}/", proxy=None))
        return client, json.loads(client.recv(DEADLINE))["client_id"]

    def client_of_each(self):
        found = {}

        def more():
            client, client_id = self.client()
            found.setdefault(client_id[8:12], (client, client_id))
            return found.keys() == self.nodes.keys()

        wait_for("clients on both nodes", more)
        return found

    def test_clients_are_spread_over_the_nodes_and_hear_what_is_pushed(self):
        for node, (client, client_id) in self.client_of_each().items():
            command = json.dumps({"client_id": client_id, "message": "hello"}).encode()
            status, text = http(f"{self.nodes[node][1]}/api/sendToClient", command, TOKEN)
            self.assertEqual((status, json.loads(text)), (200, {"result": {"nodes": 1}}))
            self.assertEqual(client.recv(DEADLINE), "hello")

    def test_the_api_and_the_page_are_there(self):
        self.assertIn("<!doctype html>", http(self.url("/"))[1])
        self.assertEqual(http(self.url("/api/getAllClientIdCount"), b"{}")[0], 401)
        self.assertEqual(http(self.url("/api/getAllClientIdCount"), b"{}", TOKEN)[0], 200)
        self.assertEqual(http(self.url("/?method=getAllClientIdCount"), None, TOKEN)[0], 200)

    def test_how_large_a_request_may_be_is_up_to_the_node(self):
        body = json.dumps({"message": "x" * (2 << 20)}).encode()
        self.assertEqual(http(self.url("/api/sendToAll"), body, TOKEN)[0], 200)

    def test_when_a_node_stops_its_clients_hear_it_and_nobody_is_turned_away(self):
        found = self.client_of_each()
        node, (client, _) = next(iter(found.items()))
        process, _ = self.nodes[node]
        process.terminate()

        def ended():
            # Some of these meet the stopping node in each of its phases.
            self.client()
            self.assertEqual(http(self.url("/healthz"))[0], 200)
            return process.poll() is not None

        wait_for("the node's end", ended)
        self.assertEqual(process.returncode, 0)
        with self.assertRaises(ConnectionClosed) as closed:
            client.recv(DEADLINE)
        self.assertEqual(closed.exception.rcvd.code, 1012)
        for _ in range(10):
            _, client_id = self.client()
            self.assertNotEqual(client_id[8:12], node)
            self.assertEqual(http(self.url("/api/getAllClientIdCount"), b"{}", TOKEN)[0], 200)


class Cluster(unittest.TestCase):
    """scripts/cluster, as `make cluster` runs it."""

    # Of the ports that it uses, from PORT.
    OFFSETS = (0, 1, 7, 10, 11)

    def start(self):
        self.port = free_port("127.0.0.1", offsets=self.OFFSETS)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MOONGATE_")}
        self.script = subprocess.Popen(
            [ROOT / "scripts/cluster", BINARY],
            env=environment | {"PORT": str(self.port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(self.script.stdout.close)
        self.addCleanup(self.stop)
        self.lines = []
        threading.Thread(target=lambda: self.lines.extend(self.script.stdout), daemon=True).start()
        wait_for("the lines to paste", lambda: "Ctrl-C" in self.printed() or self.script.poll() is not None)
        self.assertIsNone(self.script.poll(), self.printed())

    def printed(self):
        return "".join(self.lines)

    def stop(self):
        self.script.terminate()
        return self.script.wait(DEADLINE)

    def child(self, name):
        """The process of one of the script's children."""
        for child in Path(f"/proc/{self.script.pid}/task/{self.script.pid}/children").read_text().split():
            process = Path("/proc", child)
            is_node = f"MOONGATE_NODE_ID={name}\0" in process.joinpath("environ").read_text()
            if is_node or process.joinpath("cmdline").read_text().startswith(name):
                return int(child)
        raise AssertionError(f"no {name}")

    def assert_all_gone(self):
        for offset in self.OFFSETS:
            with socket.socket() as trial:
                refused = trial.connect_ex(("127.0.0.1", self.port + offset))
                self.assertEqual(refused, errno.ECONNREFUSED, f"something still listens on {self.port + offset}")

    def test_the_lines_to_paste_reach_a_client_of_the_other_node(self):
        self.start()
        with connect(f"ws://127.0.0.1:{self.port}/", proxy=None) as client:
            client_id = json.loads(client.recv(DEADLINE))["client_id"]
            commands = re.findall(r"(?:curl|redis-cli) .*", self.printed())
            self.assertEqual(len(commands), 4, self.printed())
            for command in commands:
                command = command.replace("THE ID ON THE PAGE", client_id)
                answer = subprocess.check_output(command, shell=True, text=True)
                if "bindUid" in command:
                    self.assertEqual(json.loads(answer), {"result": True})
                else:
                    self.assertEqual(client.recv(DEADLINE), "hello", command)
            self.assertEqual(self.stop(), 0)
            with self.assertRaises(ConnectionClosed) as closed:
                client.recv(DEADLINE)
            self.assertEqual(closed.exception.rcvd.code, 1012)
        self.assert_all_gone()

    def test_when_one_of_them_dies_it_is_named_and_the_others_are_stopped(self):
        for name in ("node-2", "redis-server"):
            with self.subTest(name):
                self.start()
                os.kill(self.child(name), signal.SIGKILL)
                self.assertEqual(self.script.wait(DEADLINE), 1)
                self.assertIn(f"{name} has ended", self.printed())
                self.assert_all_gone()


if __name__ == "__main__":
    unittest.main(verbosity=2)
