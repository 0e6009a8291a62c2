"""docs/start.md, in both languages, as it is pasted but for its ports: each of its applications, and its page in a browser.

scripts/check-examples runs it.
"""

import json
import re
import subprocess
import tempfile
import unittest

from browser import Browser, Page
from support import BINARY, DEADLINE, ENVIRONMENT, ROOT, Program, end, free_port, http, wait_for


# What the page says, in the language of the document.
WORDS = {
    "docs/start.md": {
        "first": "log in first",
        "you": "you are",
        "sent": "sent",
        "away": "is not here: store it, or send a mail",
        "lost": "no connection, again in ",
    },
    "docs/start.zh-CN.md": {
        "first": "请先登录",
        "you": "你是",
        "sent": "已发送",
        "away": "不在线：存起来，或者发邮件",
        "lost": "连接断开，",
    },
}

class Start(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser(cls)

    def read(self, document):
        """Its shell blocks in their order, with the ports of this test."""
        self.home = self.enterContext(tempfile.TemporaryDirectory())
        self.port = free_port("127.0.0.1", offsets=(0, 1, 7, 8, 10, 11))
        self.address = f"http://127.0.0.1:{self.port + 8}/"
        ports = {"7272": 0, "7273": 1, "7279": 7, "8000": 8, "7283": 11}
        text = re.sub("|".join(ports), lambda found: str(self.port + ports[found[0]]), (ROOT / document).read_text())
        return re.findall(r"```sh\n(.*?)```", text, re.S)

    def paste(self, lines):
        how = {"cwd": ROOT, "env": ENVIRONMENT | {"HOME": self.home}, "timeout": DEADLINE}
        done = subprocess.run(lines, shell=True, capture_output=True, text=True, check=False, **how)
        self.assertEqual((done.returncode, done.stderr), (0, ""), lines)
        return done.stdout

    def start_node(self):
        listen = {"MOONGATE_LISTEN": f"127.0.0.1:{self.port}", "MOONGATE_API_LISTEN": f"127.0.0.1:{self.port + 1}"}
        doors = {"MOONGATE_LAN_LISTEN": "off", "MOONGATE_REGISTER_LISTEN": "off", "MOONGATE_LOG": "error"}
        node = Program(self, [BINARY], MOONGATE_DRAIN="1s", **listen, **doors)
        wait_for("the node", lambda: http(f"http://127.0.0.1:{self.port + 1}/readyz")[0] == 200)
        return node

    def start_application(self, block):
        """The last line of a block starts what the others have written."""
        written, start = block.rstrip().rsplit("\n", 1)
        script = f"cd ~/first-push\n{written}\nexec {start}"
        application = Program(self, ["bash", "-c", script], HOME=self.home)
        wait_for(start, lambda: http(self.address)[0] == 200)
        return application

    def log_in(self, name):
        page = Page(self.browser, self.browser.profile(self), self.address)
        self.sees(page, self.words["first"])
        self.fill(page, "name", name)
        page.click("form button")
        self.sees(page, f"{self.words['you']} {name}")
        return page

    def fill(self, page, field, text):
        page.eval(f"document.querySelector('[name={field}]').value = {json.dumps(text)}")

    def push(self, page, to, text):
        self.fill(page, "to", to)
        self.fill(page, "text", text)
        page.click("#push button")

    def sees(self, page, text, times=1):
        """Waits until so many lines begin with this."""
        begins = f"line => line.textContent.startsWith({json.dumps(text)})"
        page.until(f"[...document.querySelectorAll('#log li')].filter({begins}).length >= {times}")

    def test_each_application_pushes_to_its_users_and_its_page_comes_back_to_two_nodes(self):
        for document, self.words in WORDS.items():
            *_, hello, page, php, python, node, push, _, cluster = self.read(document)
            gateway = self.start_node()
            self.assertEqual(json.loads(self.paste(hello)), {"result": {"nodes": 0}})
            self.paste(page)
            for block in (php, python, node):
                with self.subTest(document, application=block.splitlines()[0]):
                    application = self.start_application(block)
                    ann, bob = self.log_in("ann"), self.log_in("小明")
                    self.push(bob, "ann", "你好 <b>")
                    self.sees(ann, "小明: 你好 <b>")
                    self.sees(bob, self.words["sent"])
                    self.push(ann, "eve", "hi")
                    self.sees(ann, f"eve {self.words['away']}")
                    self.push(ann, "e" * 257, "hi")
                    self.sees(ann, "invalid_request")
                    self.assertEqual(json.loads(self.paste(push)), {"result": {"nodes": 1}})
                    self.sees(ann, json.loads(re.search("'({.*})'", push)[1])["message"]["text"])
                    self.assertEqual((ann.complaints(), bob.complaints()), ([], []))
                    if block is not node:
                        end(application.process)
                    bob.close()

            self.assertEqual(gateway.stop(), 0)
            self.sees(ann, self.words["lost"])
            two = Program(self, ["scripts/cluster", BINARY], PORT=str(self.port), MOONGATE_LOG="error")
            # Killed, it would leave its children.
            self.addCleanup(two.stop)
            two.until("Ctrl-C ends all three")
            self.sees(ann, f"{self.words['you']} ann", times=2)
            self.assertEqual(self.paste(cluster), '{"result":{"nodes":1}}\n1\n')
            for text in re.findall('"text":"(.*?)"', cluster):
                self.sees(ann, text)
            self.assertEqual(two.stop(), 0, two.printed())
            end(application.process)


if __name__ == "__main__":
    unittest.main(verbosity=2)
