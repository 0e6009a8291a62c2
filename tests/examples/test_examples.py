"""Every program in `examples/events` and `examples/tasks`, against a real Redis, a real node and real clients.

scripts/check-examples runs it; NODE_BINARY is the node, NODE_MODULES where npm has put what examples/tasks needs.
"""

import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import redis
from support import BINARY, DEADLINE, ENVIRONMENT, ROOT, Program, end, free_port, http, wait_for
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

EVENTS, TASKS = ROOT / "examples/events", ROOT / "examples/tasks"
SECRET = "a secret"


class Client:
    """A client whose first message has been read."""

    def __init__(self, test, query=""):
        self.socket = test.enterContext(connect(f"ws://127.0.0.1:{test.clients}/{query}", proxy=None))
        self.id = self.hears()["client_id"]

    def hears(self):
        """Its next message, from JSON where it is that."""
        message = self.socket.recv(DEADLINE)
        return json.loads(message) if message.startswith("{") else message

    def says(self, **message):
        self.socket.send(json.dumps(message))


class World(unittest.TestCase):
    """A Redis and a node."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.redis_port, self.clients, self.api = (free_port("127.0.0.1") for _ in range(3))
        server = [os.environ.get("REDIS_SERVER", "redis-server"), "--port", str(self.redis_port)]
        server += ["--bind", "127.0.0.1", "--save", "", "--dir", directory.name]
        self.addCleanup(end, subprocess.Popen(server, stdout=subprocess.DEVNULL))
        self.redis_url = f"redis://127.0.0.1:{self.redis_port}"
        self.redis = redis.Redis.from_url(self.redis_url, decode_responses=True, socket_timeout=2 * DEADLINE, protocol=2)
        self.addCleanup(self.redis.close)
        wait_for("Redis", self.redis_answers)

    def redis_answers(self):
        try:
            return self.redis.ping()
        except redis.ConnectionError:
            return False

    def start_node(self, **settings):
        settings |= {"LISTEN": f"127.0.0.1:{self.clients}", "API_LISTEN": f"127.0.0.1:{self.api}", "LOG": "error"}
        settings |= {"REDIS_URL": self.redis_url, "LAN_LISTEN": "off", "REGISTER_LISTEN": "off"}
        node = subprocess.Popen([BINARY], env={f"MOONGATE_{name}": value for name, value in settings.items()})
        self.addCleanup(end, node)
        wait_for("the node", lambda: http(f"http://127.0.0.1:{self.api}/readyz")[0] == 200)

    def ask(self, op, **fields):
        return json.loads(http(f"http://127.0.0.1:{self.api}/api/{op}", json.dumps(fields).encode())[1])


class Worker(World):
    """examples/events/worker.py"""

    def setUp(self):
        super().setUp()
        self.start_node(EVENTS="stream")

    def start_worker(self, share="0/1", **environment):
        worker = Program(self, [sys.executable, EVENTS / "worker.py", share], REDIS_URL=self.redis_url, **environment)
        return worker.until("ready")

    def client(self):
        client = Client(self)
        self.assertEqual(client.hears(), {"type": "news", "text": "log in, please"})
        return client

    def member(self, name, room="1"):
        client = self.client()
        client.says(type="login", name=name, room=room)
        joined = client.hears()
        self.assertEqual((joined["type"], joined["name"]), ("joined", name))
        return client, joined["online"]

    def test_it_is_a_chat_room(self):
        worker = self.start_worker()
        ann, online = self.member("Ann")
        self.assertEqual(online, ["Ann"])
        bob, online = self.member("Bob")
        self.assertEqual(online, ["Ann", "Bob"])
        self.assertEqual(ann.hears(), {"type": "joined", "name": "Bob", "online": ["Ann", "Bob"]})
        ann.says(type="say", text="你好")
        for client in (ann, bob):
            self.assertEqual(client.hears(), {"type": "said", "name": "Ann", "text": "你好"})
        ann.says(type="typing")
        self.assertEqual(bob.hears(), {"type": "typing", "name": "Ann"})
        ann.says(type="private", to="Bob", text="psst")
        for client in (bob, ann):
            self.assertEqual(client.hears(), {"type": "private", "name": "Ann", "to": "Bob", "text": "psst"})
        ann.says(type="private", to="Eve", text="psst")
        self.assertEqual(ann.hears(), {"type": "offline", "name": "Eve"})
        for nonsense in ("x", "[]", '{"type": 1}', '{"type":"login","name":["a"],"room":"1"}'):
            ann.socket.send(nonsense)
        ann.socket.send(b"\xff")
        bob.socket.close()
        self.assertEqual(ann.hears(), {"type": "left", "name": "Bob"})
        self.assertEqual(worker.stop(), 0)
        self.assertNotIn("Traceback", worker.printed())
        self.assertEqual(self.redis.xpending("mg:events", "chat-0/1")["pending"], 0)

    def test_what_a_crashed_worker_had_in_hand_is_done_by_the_next(self):
        for crashed, environment in (("worker", {}), ("another", {"LEFT": "200"})):
            with self.subTest(crashed):
                worker = self.start_worker(**environment)
                ann, _ = self.member(f"Ann-{crashed}", crashed)
                self.assertEqual(worker.stop(), 0)
                ann.says(type="say", text="one")
                ann.says(type="say", text="two")

                # As one that is killed before it has done anything.
                taken = []
                while sum(event["event"] == "message" for event in taken) < 2:
                    read = self.redis.xreadgroup("chat-0/1", crashed, {"mg:events": ">"}, block=DEADLINE * 1000)
                    self.assertTrue(read, "both are told")
                    taken += [event for _, entries in read for _, event in entries]
                worker = self.start_worker(**environment)
                ann.says(type="say", text="three")
                texts = [ann.hears()["text"] for _ in range(3)]
                self.assertEqual(set(texts), {"one", "two", "three"})
                if crashed == "worker":
                    # Under its own name it does first what it had in hand.
                    self.assertEqual(texts, ["one", "two", "three"])
                self.assertEqual(worker.stop(), 0)

    def test_an_event_that_is_told_twice_is_answered_once(self):
        self.start_worker()
        ann, _ = self.member("Ann")
        ann.says(type="say", text="one")
        self.assertEqual(ann.hears()["text"], "one")
        [(_, event)] = self.redis.xrevrange("mg:events", count=1)
        self.redis.xadd("mg:events", event)
        ann.says(type="say", text="two")
        self.assertEqual(ann.hears()["text"], "two")

    def test_several_workers_share_the_clients_and_each_client_is_answered_in_order(self):
        workers = [self.start_worker(f"{place}/2") for place in range(2)]
        members = [self.member(f"m{number}", f"r{number}")[0] for number in range(8)]
        for text in range(20):
            for member in members:
                member.says(type="say", text=str(text))
        for member in members:
            self.assertEqual([member.hears()["text"] for _ in range(20)], [str(text) for text in range(20)])
        for worker in workers:
            self.assertEqual(worker.stop(), 0)


class Receiver(World):
    """The webhook receivers in examples/events, one after the other."""

    def receivers(self, port):
        yield [sys.executable, EVENTS / "receiver.py"]
        yield ["node", EVENTS / "receiver.mjs"]
        yield ["php", "-S", f"127.0.0.1:{port}", EVENTS / "receiver.php"]

    def post(self, signature, body=b'{"event":"bound","uid":"1"}'):
        request = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{self.hook}/"]
        request += ["-H", f"Moongate-Signature: {signature}", "--data-binary", "@-"]
        return subprocess.run(request, input=body, capture_output=True, check=False).stdout.decode()

    @staticmethod
    def signature(age=0, secret=SECRET, body=b'{"event":"bound","uid":"1"}'):
        at = str(int(time.time()) - age)
        return f"t={at},v1=" + hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()

    def test_they_let_in_answer_and_believe_only_what_is_signed(self):
        self.hook = free_port("127.0.0.1")
        self.start_node(EVENTS="webhook", WEBHOOK_URL=f"http://127.0.0.1:{self.hook}/", WEBHOOK_SECRET=SECRET)
        for command in self.receivers(self.hook):
            with self.subTest(command[0]):
                receiver = Program(self, command, PORT=str(self.hook), MOONGATE_WEBHOOK_SECRET=SECRET)
                try:
                    self.check(receiver)
                finally:
                    end(receiver.process)

    def check(self, receiver):
        wait_for("the receiver", lambda: self.post("") == "400")
        ann = Client(self, "?name=Ann")
        self.assertEqual(ann.hears(), "welcome, Ann")
        self.assertTrue(self.ask("isUidOnline", uid="Ann")["result"])
        for text in ("hi", "世界"):
            ann.socket.send(text)
            self.assertEqual(ann.hears(), f"you said: {text}")
        with self.assertRaises(InvalidStatus) as refused:
            Client(self)
        self.assertEqual(refused.exception.response.status_code, 403)
        ann.socket.close()
        receiver.until("close")

        self.assertEqual(self.post(self.signature()), "200")
        self.assertEqual(self.post(self.signature(age=250)), "200")
        good = self.signature()
        for bad in (
            "", "t=,v1=", "t=x,v1=y", good[:-1], good.replace("v1=", "v1=0"), good.replace("t=", "t=1"),
            self.signature(age=400), self.signature(age=-400), self.signature(secret="another"), "nonsense", "t=1,v1=é",
        ):  # fmt: skip
            self.assertEqual(self.post(bad), "400", bad)

        self.redis.xadd("mg:tasks", {"webhook": '{"mail":"welcome"}'})
        receiver.until("task")
        self.assertIn('"welcome"', receiver.printed())
        self.assertIsNone(receiver.process.poll(), receiver.printed())


class Tasks(World):
    """The programs in examples/tasks."""

    def programs(self):
        # npm puts what it needs beside it.
        shutil.copy(TASKS / "enqueue.mjs", os.environ["NODE_MODULES"])
        return {
            "python": [sys.executable, TASKS / "enqueue.py"],
            "php": ["php", TASKS / "enqueue.php"],
            "node": ["node", Path(os.environ["NODE_MODULES"], "enqueue.mjs")],
            "redis-cli": [TASKS / "enqueue.sh"],
        }

    def test_each_kind_of_task_does_what_it_says(self):
        hook = free_port("127.0.0.1")
        receiver = Program(
            self, [sys.executable, EVENTS / "receiver.py"], PORT=str(hook), MOONGATE_WEBHOOK_SECRET=SECRET
        )
        self.start_node(WEBHOOK_URL=f"http://127.0.0.1:{hook}/", WEBHOOK_SECRET=SECRET)
        for name, command in self.programs().items():
            with self.subTest(name):
                client = Client(self)
                program = Program(
                    self, [*command, client.id], REDIS_URL=self.redis_url, REDIS_PORT=str(self.redis_port)
                )
                self.assertEqual(program.process.wait(DEADLINE), 0, program.printed())
                program.reading.join()
                self.assertEqual(json.loads(program.printed()), {"results": [{"result": True}, {"result": {"nodes": 1}}]})
                heard = []
                while not {"bound", "now", "once", "later", "on time", "tick"} <= set(heard):
                    heard.append(client.hears())
                wait_for("the cron is cancelled", lambda: self.ask("getTask", id="tick") == {"result": None})
                # Whatever is still to come comes before this.
                self.ask("sendToUid", uid=42, message="end")
                while heard[-1] != "end":
                    heard.append(client.hears())
                self.assertEqual(heard[0], "bound")
                self.assertLess(heard.index("now"), heard.index("on time"))
                self.assertLess(heard.index("on time"), heard.index("later"))
                self.assertEqual({text: heard.count(text) for text in set(heard) - {"tick"}}, dict.fromkeys(
                    ("bound", "now", "once", "on time", "later", "end"), 1))  # fmt: skip
                receiver.until("task")
                self.assertIn('task {"mail": "welcome", "to": 42}', receiver.printed())
                receiver.lines.clear()
                client.socket.close()
        self.assertEqual(self.redis.xlen("mg:tasks:dead"), 0)


class Documents(World):
    """The lines to paste in the documents, in the order in which they stand there."""

    def lines(self, document):
        """Those of shell blocks that are for Redis or the API."""
        text = Path(ROOT, document).read_text()
        lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
        for line in map(str.strip, lines):
            if line.startswith(("redis-cli", "curl")) and " BLOCK 0 " not in line:
                yield self.here(line)

    def here(self, text):
        """With the ports of this test, in one pass: the one may have the digits of the other."""
        ports = {"7279": self.redis_port, "7273": self.api}
        return re.sub("7279|7273", lambda found: str(ports[found[0]]), text)

    def run_all(self, document, client_id=""):
        answers = {}
        for line in self.lines(document):
            line = line.replace("7f0000010b54a3c1e07f", client_id)
            done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, timeout=DEADLINE)
            self.assertEqual((done.returncode, done.stderr), (0, ""), line)
            self.assertNotRegex(done.stdout, r"\b(ERR|NOGROUP|BUSYGROUP|error|code)\b", line)
            answers[line] = done.stdout
            # What was queued is done, or kept for later, as it is when a person gets to the next line.
            wait_for(f"an idle queue after {line}", lambda: self.redis.xlen("mg:tasks") == 0)
        return answers

    def check_tasks(self, document):
        self.redis.flushall()
        client = Client(self)
        self.ask("bindUid", client_id=client.id, uid=42)
        answers = self.run_all(document)
        heard = {client.hears(), client.hears()}
        self.assertEqual(len(heard), 2, heard)
        self.assertIn("now", heard)
        result = {"results": [{"result": True}, {"result": {"nodes": 1}}]}
        [reply] = [answer for line, answer in answers.items() if "BLPOP" in line]
        self.assertEqual(json.loads(reply.splitlines()[1]), result)
        by_operation = {op: answer for line, answer in answers.items() for op in re.findall(r"api/(\w+)", line)}
        self.assertEqual(json.loads(by_operation["addTask"]), {"result": {"id": "minute"}})
        self.assertEqual(json.loads(by_operation["getTask"])["result"]["state"], "waiting")
        self.assertIn("minute", [task["id"] for task in json.loads(by_operation["listTasks"])["result"]["items"]])
        self.assertEqual(json.loads(by_operation["cancelTask"]), {"result": True})
        self.assertEqual(json.loads(by_operation["retryTask"]), {"result": True})
        [letters] = [answer for line, answer in answers.items() if "XRANGE" in line]
        self.assertIn("uuid", letters)
        self.assertEqual(self.ask("getTask", id="reminder-17"), {"result": None})

    def check_reference(self, document):
        """Each line, with a client of its own that is prepared as the page says; its answer stands below it."""
        self.start_node()
        text = self.here(Path(ROOT, document).read_text()).replace("target/release/moongate", BINARY)
        blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
        [prepare] = [block for block in blocks if block.startswith("api()")]
        prepared = prepare.splitlines()[-1].removeprefix("# ")
        environment = ENVIRONMENT | {"MOONGATE_API_LISTEN": f"127.0.0.1:{self.api}"}
        blocks.remove(prepare)
        for line, answer in re.findall(r"^([^#].*)\n(?:# (.*))?", "".join(blocks), re.M):
            client = Client(self)
            done = subprocess.run(
                prepare + line, shell=True, capture_output=True, text=True, timeout=DEADLINE, env=environment
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""), line)
            if answer:
                answers = [prepared, answer.replace("7f0000010b5400000001", client.id)]
                self.assertEqual(done.stdout.splitlines(), answers, line)
            else:
                self.assertIn(client.hears(), ("hello", "你好"), line)
            client.socket.close()
            wait_for("the client is gone", lambda: self.ask("getAllClientIdCount") == {"result": 0})

    def test_the_lines_of_the_reference_answer_as_it_says(self):
        self.check_reference("docs/api.md")

    def test_the_lines_of_the_chinese_reference_answer_as_it_says(self):
        self.check_reference("docs/api.zh-CN.md")

    def test_the_lines_about_tasks_do_what_is_said(self):
        self.start_node()
        for document in ("docs/tasks.md", "docs/tasks.zh-CN.md"):
            with self.subTest(document):
                self.check_tasks(document)

    def test_the_lines_about_events_do_what_is_said(self):
        self.start_node(EVENTS="stream")
        for document in ("docs/events.md", "docs/events.zh-CN.md"):
            with self.subTest(document):
                self.redis.delete("mg:events")
                answers = iter(self.run_all(document).values())
                self.assertEqual(next(answers), "OK\n")

    def run_programs(self, document):
        """Those in PHP, Python and Node; what each prints."""
        directory = Path(os.environ["NODE_MODULES"])  # npm puts what Node needs beside it
        commands = {"php": ("php", "push.php"), "python": (sys.executable, "push.py"), "js": ("node", "push.mjs")}
        for language, block in re.findall(r"^```(php|python|js)\n(.*?)^```", Path(ROOT, document).read_text(), re.M | re.S):
            program, file = commands[language]
            directory.joinpath(file).write_text(self.here(block))
            done = subprocess.run(
                [program, directory / file], capture_output=True, text=True, check=False, timeout=DEADLINE
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""), block)
            yield done.stdout.strip()

    def test_the_lines_and_programs_of_the_readme_and_about_redis_reach_their_user(self):
        self.start_node()
        mail = {"type": "mail", "unread": 3}
        published = [mail, "hi all", "back at noon", "42 is here"]
        for document, by_lines, by_program in (
            ("README.md", ["hello", mail, "hi all"], [mail]),
            ("README.zh-CN.md", ["你好", mail, "大家好"], [mail]),
            ("docs/redis.md", published, published),
            ("docs/redis.zh-CN.md", published, published),
        ):
            with self.subTest(document):
                client = Client(self)
                self.ask("bindUid", client_id=client.id, uid=42)
                self.ask("joinGroup", uid=42, group="room-1")
                self.run_all(document, client.id)
                self.assertEqual([client.hears() for _ in by_lines], by_lines)
                for printed in self.run_programs(document):
                    self.assertIn("1", printed)
                    self.assertEqual([client.hears() for _ in by_program], by_program)
                client.socket.close()
                wait_for("the client is gone", lambda: self.ask("getAllClientIdCount") == {"result": 0})


if __name__ == "__main__":
    unittest.main(verbosity=2)
