"""The programs in `examples/push`, against a real Redis, two real nodes and real clients on both.

scripts/check-examples runs it, and has built PUSH_GO and PUSH_RUST; NODE_MODULES is where npm has put what push.mjs needs,
and JEDIS Java's class path, where it could be had.
"""

import os
import re
import shutil
import subprocess
import sys
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import DEADLINE, ENVIRONMENT, ROOT, free_port, wait_for
from test_examples import Client, World

PUSH = ROOT / "examples/push"


class Push(World):
    def start_nodes(self):
        self.doors = []
        for _ in range(2):
            self.clients, self.api = (free_port("127.0.0.1") for _ in range(2))
            self.start_node()
            self.doors.append(self.clients)

    def client(self, node):
        self.clients = self.doors[node]
        return Client(self)

    def programs(self):
        # npm puts what it needs beside it.
        shutil.copy(PUSH / "push.mjs", os.environ["NODE_MODULES"])
        programs = {
            "PHP": ["php", PUSH / "push.php"],
            "Python": [sys.executable, PUSH / "push.py"],
            "Node": ["node", Path(os.environ["NODE_MODULES"], "push.mjs")],
            "Go": [os.environ["PUSH_GO"]],
            "Ruby": ["ruby", PUSH / "push.rb"],
            "Rust": [os.environ["PUSH_RUST"]],
            "redis-cli": [PUSH / "push.sh"],
        }
        if os.environ.get("JEDIS"):
            programs["Java"] = ["java", "-cp", os.environ["JEDIS"], PUSH / "Push.java"]
        return programs

    def run_program(self, command, client_id):
        environment = ENVIRONMENT | {"REDIS_URL": self.redis_url, "REDIS_PORT": str(self.redis_port)}
        return subprocess.run(
            [*command, client_id], env=environment, capture_output=True, text=True, check=False, timeout=DEADLINE
        )

    def test_each_binds_and_is_heard_by_whom_it_says(self):
        self.start_nodes()
        for language, command in self.programs().items():
            with self.subTest(language):
                # Ann has a tab on each node; Bob is in the room on the second; Eve is nobody, nowhere.
                clients = [self.client(node) for node in (0, 1, 1, 0)]
                try:
                    self.check(command, *clients)
                finally:
                    for client in clients:
                        client.socket.close()
                    gone = "mg:uid:42:clients", "mg:group:room-1:clients"
                    wait_for("all to leave", lambda gone=gone: not self.redis.exists(*gone))

    def check(self, command, ann, tab, bob, eve):
        for client, uid in ((tab, 42), (bob, 7)):
            self.ask("bindUid", client_id=client.id, uid=uid)
            self.ask("joinGroup", client_id=client.id, group="room-1")
        earlier = self.delayed()

        done = self.run_program(command, ann.id)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        bound, nodes, online, room, session = done.stdout.splitlines()
        self.assertEqual((bound, nodes, session), ("bound", "nodes 2", 'session {"name":"Ann"}'))
        self.assertEqual(sorted(online.split(" ")), sorted(["online", ann.id, tab.id]))
        self.assertEqual(sorted(room.split(" ")), sorted(["room-1", ann.id, tab.id, bob.id]))
        self.assertEqual(self.ask("getUidByClientId", client_id=ann.id), {"result": "42"})

        for client in (ann, tab):
            self.assertEqual(client.hears(), {"type": "mail", "unread": 3})
            self.assertEqual(client.hears(), "later")
        seconds, micros = self.redis.time()
        [task] = self.delayed() - earlier
        # Its id is when it was added.
        self.assertGreaterEqual(seconds * 1000 + micros // 1000 - int(task.split("-")[0]), 2000)
        self.assertEqual(bob.hears(), {"type": "typing", "uid": 42})
        # Nobody has heard more.
        self.ask("sendToAll", message="end")
        for client in (ann, tab, bob, eve):
            self.assertEqual(client.hears(), "end")

    def delayed(self):
        """The ids of delayed tasks that are not forgotten yet."""
        return {task["id"] for task in self.ask("listTasks")["result"]["items"] if "delay" in task["task"]}

    def test_each_says_that_its_client_is_gone_and_sends_nothing(self):
        self.start_nodes()
        tab, gone = self.client(0), self.client(1)
        self.ask("bindUid", client_id=tab.id, uid=42)
        gone.socket.close()
        wait_for("it to leave", lambda: not self.ask("isOnline", client_id=gone.id)["result"])
        for language, command in self.programs().items():
            with self.subTest(language):
                done = self.run_program(command, gone.id)
                self.assertNotEqual(done.returncode, 0)
                self.assertRegex(done.stdout + done.stderr, "not bound: .*client_not_found")
        self.ask("sendToUid", uid=42, message="end")
        self.assertEqual(tab.hears(), "end")

    def test_each_says_that_no_node_has_answered(self):
        programs = self.programs()
        with ThreadPoolExecutor(len(programs)) as pool:
            all_done = pool.map(lambda command: self.run_program(command, "7f0000010b54a3c1e07f"), programs.values())
        for language, done in zip(programs, all_done, strict=True):
            with self.subTest(language):
                self.assertNotEqual(done.returncode, 0)
                self.assertIn("no node has answered; the task stays in the queue", done.stdout + done.stderr)
        self.assertEqual(self.redis.xlen("mg:tasks"), len(programs))

    def test_the_pages_show_the_lines_of_the_programs(self):
        for page, language, program in (("README.md", "python", "push.py"), ("README.zh-CN.md", "php", "push.php")):
            blocks = re.findall(rf"```{language}\n(.*?)```", (PUSH / page).read_text(), re.S)
            self.assertEqual(len(blocks), 5)
            for block in blocks:
                self.assertIn(block, (PUSH / program).read_text())


if __name__ == "__main__":
    unittest.main(verbosity=2)
