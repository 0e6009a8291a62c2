"""What the proxies' files in `deploy`, the manifests and `make cluster` promise, tried on the real things.

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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml
from support import BINARY, DEADLINE, ENVIRONMENT, ROOT, end, free_port, http, wait_for
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


class Application(BaseHTTPRequestHandler):
    """The webhook: lets everyone in, and remembers what it was told of them."""

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.heard[event["client_id"]] = event
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


class BehindProxy:
    """Two nodes behind a proxy, with no more of its file changed than addresses, ports and directories."""

    NODES = ("127.0.0.2", "127.0.0.3")

    def setUp(self):
        self.node_clients, self.node_api = free_port(*self.NODES), free_port(*self.NODES)
        self.clients, self.api = free_port("127.0.0.1"), free_port("127.0.0.1")
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        self.application = ThreadingHTTPServer(("127.0.0.1", 0), Application)
        self.application.heard = {}
        self.addCleanup(self.application.server_close)
        threading.Thread(target=self.application.serve_forever, daemon=True).start()
        self.addCleanup(self.application.shutdown)

        self.nodes = {}
        for address in self.NODES:
            # Client ids name it: by that a test knows whose a client is.
            lan = free_port("127.0.0.1")
            environment = {
                "MOONGATE_LISTEN": f"{address}:{self.node_clients}",
                "MOONGATE_API_LISTEN": f"{address}:{self.node_api}",
                "MOONGATE_API_TOKEN": TOKEN,
                "MOONGATE_API_MAX_BODY": "4MiB",
                "MOONGATE_LAN_PORT": str(lan),
                "MOONGATE_TRUSTED_PROXIES": "127.0.0.0/8",
                "MOONGATE_EVENTS": "webhook:connect",
                "MOONGATE_WEBHOOK_URL": f"http://127.0.0.1:{self.application.server_port}/",
                "MOONGATE_DRAIN": "2s",
                "MOONGATE_LOG": "error",
            }
            node = subprocess.Popen([BINARY], env=environment)
            self.addCleanup(end, node)
            self.nodes[f"{lan:04x}"] = (node, f"http://{address}:{self.node_api}")
        self.start_proxy()
        for _, api in self.nodes.values():
            wait_for("node", lambda url=api: http(f"{url}/readyz")[0] == 200)
        wait_for("proxy", lambda: http(self.url("/readyz"))[0] == 200)

    def changed(self, name, changes):
        """Where a copy of the file is that has the tests' addresses."""
        text = (ROOT / "deploy" / name).read_text()
        for old, new in changes.items():
            self.assertIn(old, text)
            text = text.replace(old, new)
        file = Path(self.directory, name)
        file.write_text(text)
        return str(file)

    def run_proxy(self, *command, **how):
        proxy = subprocess.Popen(command, **how)
        # A killed master would leave its workers.
        self.addCleanup(lambda: (proxy.terminate(), proxy.wait()))

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

    def test_what_a_client_says_of_its_own_address_is_not_believed(self):
        headers = {"X-Forwarded-For": "203.0.113.9"}
        client = self.enterContext(
            connect(f"ws://127.0.0.1:{self.clients}/", proxy=None, additional_headers=headers)
        )
        client_id = json.loads(client.recv(DEADLINE))["client_id"]
        self.assertEqual(self.application.heard[client_id]["ip"], "127.0.0.1")

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


class BehindNginx(BehindProxy, unittest.TestCase):
    def start_proxy(self):
        names = Names(self.NODES)
        self.addCleanup(names.socket.close)
        file = self.changed(
            "nginx.conf",
            {
                "/tmp/": f"{self.directory}/",
                "resolver 127.0.0.11 ": f"resolver 127.0.0.1:{names.port} ",
                "listen 7272;": f"listen 127.0.0.1:{self.clients};",
                "listen 7273;": f"listen 127.0.0.1:{self.api};",
                " node:7272;": f" node:{self.node_clients};",
                " node:7273;": f" node:{self.node_api};",
            },
        )
        # As in the container, it is not root.
        plain = {}
        if os.geteuid() == 0:
            os.chown(self.directory, 65534, 65534)
            plain = {"user": 65534, "group": 65534, "extra_groups": []}
        nginx = ["nginx", "-p", self.directory, "-c", file, "-e", "stderr"]
        checked = subprocess.run([*nginx, "-t"], capture_output=True, text=True, check=False, **plain)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        self.assertNotIn("[warn]", checked.stderr)
        self.run_proxy(*nginx, "-g", "daemon off;", **plain)


class BehindHAProxy(BehindProxy, unittest.TestCase):
    def start_proxy(self):
        file = self.changed(
            "haproxy.cfg",
            {
                "bind :7272": f"bind 127.0.0.1:{self.clients}",
                "bind 127.0.0.1:7273": f"bind 127.0.0.1:{self.api}",
                " 10.0.0.1:7272": f" {self.NODES[0]}:{self.node_clients}",
                " 10.0.0.2:7272": f" {self.NODES[1]}:{self.node_clients}",
                " 10.0.0.1:7273": f" {self.NODES[0]}:{self.node_api}",
                " 10.0.0.2:7273": f" {self.NODES[1]}:{self.node_api}",
                "check port 7273": f"check port {self.node_api}",
            },
        )
        checked = subprocess.run(["haproxy", "-c", "-f", file], capture_output=True, text=True, check=False)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        self.assertNotIn("[WARNING]", checked.stderr)
        self.run_proxy("haproxy", "-db", "-f", file)


class Manifests(unittest.TestCase):
    """What one file says of another, which no schema knows."""

    def read(self, path):
        return list(yaml.safe_load_all((ROOT / path).read_text()))

    def test_the_autoscaler_counts_what_a_node_measures(self):
        api = free_port("127.0.0.1")
        environment = {
            "MOONGATE_LISTEN": f"127.0.0.1:{free_port('127.0.0.1')}",
            "MOONGATE_API_LISTEN": f"127.0.0.1:{api}",
            "MOONGATE_API_TOKEN": TOKEN,
            "MOONGATE_METRICS_OPEN": "true",
            "MOONGATE_LOG": "error",
        }
        self.addCleanup(end, subprocess.Popen([BINARY], env=environment))
        wait_for("node", lambda: http(f"http://127.0.0.1:{api}/readyz")[0] == 200)
        status, metrics = http(f"http://127.0.0.1:{api}/metrics")
        self.assertEqual(status, 200)
        (autoscaler,) = self.read("k8s/overlays/production/autoscaler.yaml")
        (metric,) = autoscaler["spec"]["metrics"]
        self.assertRegex(metrics, f"(?m)^# TYPE {metric['pods']['metric']['name']} gauge$")

    def test_prometheus_finds_the_nodes_metrics_once(self):
        (monitor,) = self.read("k8s/overlays/production/servicemonitor.yaml")
        (endpoint,) = monitor["spec"]["endpoints"]
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [
            service["metadata"]["name"]
            for service in self.read("k8s/base/services.yaml")
            if wanted <= service["metadata"]["labels"].items()
            for port in service["spec"]["ports"]
            if port["name"] == endpoint["port"]
        ]
        self.assertEqual(found, ["moongate-api"])

    def test_all_policies_and_selectors_are_about_the_nodes(self):
        deployment = self.read("k8s/base/deployment.yaml")[0]["spec"]["template"]["metadata"]["labels"]
        for path, where in {
            "k8s/base/disruption.yaml": "selector",
            "k8s/base/network.yaml": "podSelector",
            "k8s/overlays/production/network.yaml": "podSelector",
        }.items():
            for document in self.read(path):
                self.assertEqual(document["spec"][where]["matchLabels"], deployment, path)

    def test_whoever_stops_a_node_waits_longer_than_it_drains(self):
        # That docker-compose.yml and k8s say 25 s is the default too, which the unit has.
        waits = {
            "docker-compose.yml": (r"MOONGATE_DRAIN: (\d+)s", r"stop_grace_period: (\d+)s"),
            "k8s/base/kustomization.yaml": (r"MOONGATE_DRAIN=(\d+)s", None),
            "k8s/base/deployment.yaml": (None, r"(?:minReady|terminationGracePeriod)Seconds: (\d+)"),
            "deploy/moongate.service": (None, r"TimeoutStopSec=(\d+)s"),
            "deploy/nginx.conf": (None, r"worker_shutdown_timeout (\d+)s"),
            "deploy/haproxy.cfg": (None, r"hard-stop-after (\d+)s"),
        }
        for path, (drain, wait) in waits.items():
            text = (ROOT / path).read_text()
            if drain:
                self.assertEqual(re.findall(drain, text), ["25"], path)
            if wait:
                found = re.findall(wait, text)
                self.assertTrue(found, path)
                self.assertGreater(min(map(int, found)), 25, path)


class Cluster(unittest.TestCase):
    """scripts/cluster, as `make cluster` runs it."""

    # Of the ports that it uses, from PORT.
    OFFSETS = (0, 1, 7, 10, 11)

    def start(self):
        self.port = free_port("127.0.0.1", offsets=self.OFFSETS)
        self.script = subprocess.Popen(
            [ROOT / "scripts/cluster", BINARY],
            env=ENVIRONMENT | {"PORT": str(self.port)},
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
            self.assertTrue(self.is_free(offset), f"something still listens on {self.port + offset}")

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

    def test_they_are_stopped_though_what_read_its_lines_was_stopped_first(self):
        self.port = free_port("127.0.0.1", offsets=self.OFFSETS)
        read = subprocess.Popen(
            ["bash", "-c", f"'{ROOT}/scripts/cluster' '{BINARY}' 2>&1 | cat >/dev/null"],
            env=ENVIRONMENT | {"PORT": str(self.port)},
            start_new_session=True,
        )
        self.addCleanup(read.wait, DEADLINE)
        wait_for("the second node", lambda: http(f"http://127.0.0.1:{self.port + 11}/readyz")[0] == 200)
        os.killpg(read.pid, signal.SIGTERM)
        wait_for("all to be gone", lambda: all(map(self.is_free, self.OFFSETS)))

    def is_free(self, offset):
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self.port + offset)) == errno.ECONNREFUSED

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
