"""examples/chat-room, as `examples/run` starts it: both applications, and pages in a real browser on both nodes.

scripts/check-examples runs it. With SCREENSHOTS=directory it leaves pictures of the page there.
"""

import json
import os
import signal
import unittest
import urllib.error
import urllib.request

from browser import Page
from example import Example, look, looks, picture
from support import DEADLINE, wait_for


class Member(Page):
    """Somebody's tab in the room."""

    def __init__(self, test, name, node, profile=None, query=""):
        self.name, self.test = name, test
        self.profile = profile or test.browser.profile(test)
        super().__init__(test.browser, self.profile, f"{test.address}/?node={node}{query}")
        if profile is None:
            self.until("!$('login').hidden && document.activeElement === $('uname')")
            self.type(name)
        self.until("$('state').dataset.state === 'open'")

    def tab(self, node):
        """Another tab of the same user."""
        return Member(self.test, self.name, node, self.profile)

    def sees(self, *names):
        """Waits until exactly these others are on the list."""
        shown = "JSON.stringify([...document.querySelectorAll('#users button .theirs')].map(e => e.textContent))"
        wanted = json.dumps(sorted(names), separators=(",", ":"), ensure_ascii=False)
        self.until(f"{shown} === {json.dumps(wanted)}")
        self.test.assertEqual(self.eval("$('count').textContent"), f"({len(names) + 1})")

    def says(self, text, to=None):
        if to:
            self.click(f'#users [data-uid="{to.uid()}"]')
        self.eval("$('text').focus()")
        self.type(text)

    def uid(self):
        return self.eval("me.uid")

    def lines(self, kind):
        return self.eval(f"[...document.querySelectorAll('#log {kind}')].map(e => e.textContent)")

    def hears(self, text):
        """Waits until this is the last that was said."""
        self.until(f"[...document.querySelectorAll('#log .text')].pop()?.textContent === {json.dumps(text)}")


class ChatRoom(Example):
    """What holds for both applications."""

    # Pages that come back before a dead node is found out were not missed; on a busy machine they take their time.
    environment = {"MOONGATE_NODE_TTL": "4s"}

    def member(self, name, node):
        return Member(self, name, node)

    def test_who_comes_and_goes_is_announced_once_and_both_nodes_show_the_same_room(self):
        ann = self.member("Ann", 1)
        ann.sees()
        bob = self.member("Bob", 2)
        ann.sees("Bob")
        bob.sees("Ann")
        nodes = {self.redis.hget(key, "node") for key in self.redis.keys("mg:client:" + "[0-9a-f]" * 20)}
        self.assertEqual(len(nodes), 2, "they are on two nodes")
        session = json.loads(self.redis.hget(self.redis.keys("mg:client:" + "[0-9a-f]" * 20)[0], "session"))
        self.assertEqual(session.keys(), {"uid", "uname", "avatar", "room_id", "tab"})

        # A second tab is no second user, and takes nobody away.
        tab = ann.tab(2)
        tab.sees("Bob")
        tab.close()
        wait_for("the tab to leave", lambda: self.redis.scard("mg:group:room-1:clients") == 2)
        cid = self.member("Cid", 1)
        bob.sees("Ann", "Cid")
        cid.close()
        bob.sees("Ann")
        ann.sees("Bob")
        self.assertEqual(bob.lines(".notice")[1:], ["Cid has come in", "Cid has left"])
        self.assertEqual(ann.lines(".notice")[1:], ["Bob has come in", "Cid has come in", "Cid has left"])

        # Another room is another list.
        dan = Member(self, "Dan", 1, query="&room=2")
        dan.says("who is here?")
        dan.hears("who is here?")
        dan.sees()
        bob.sees("Ann")
        self.assertEqual(bob.lines(".text"), [])
        for page in (ann, bob, dan):
            self.assertEqual(page.complaints(), [])

    def test_what_is_said_to_all_is_on_all_pages_and_what_is_said_to_one_on_the_tabs_of_the_two(self):
        ann, bob, cid = self.member("Ann", 1), self.member("Bob", 2), self.member("Cid", 1)
        tab = ann.tab(2)
        ann.sees("Bob", "Cid")
        ann.says("你好，大家")
        for page in (ann, tab, bob, cid):
            page.hears("你好，大家")
        ann.says("psst", to=bob)
        for page in (ann, tab, bob):
            page.hears("psst")
        self.assertIn("to Bob alone", tab.lines(".private .who")[0])
        self.assertIn("Ann, to you alone", bob.lines(".private .who")[0])
        # What is said to all later stands on Cid's page, and nothing before it.
        bob.says("hi all")
        cid.hears("hi all")
        self.assertEqual(cid.lines(".text"), ["你好，大家", "hi all"])
        for page in (ann, tab):
            page.hears("hi all")
            self.assertEqual(page.lines(".text"), ["你好，大家", "psst", "hi all"])
        self.assertEqual(ann.lines(".mine .text"), ["你好，大家", "psst"])

        # Whoever has left is not spoken to, and the text stays.
        self.assertTrue(ann.eval("$('to').classList.contains('private')"))
        bob.close()
        ann.sees("Cid")
        ann.says("still there?")
        ann.until("document.querySelector('#say .problem').textContent.startsWith('Bob is not here any more')")
        self.assertEqual(ann.eval("$('text').value"), "still there?")
        ann.click("#to button")
        for number in range(5):
            ann.eval("$('text').value = ''")
            ann.says(f"line {number}")
        cid.hears("line 4")
        self.assertEqual(cid.lines(".text")[-5:], [f"line {number}" for number in range(5)])

    def test_who_has_left_does_not_come_back_by_a_slower_greeting(self):
        ann, bob = self.member("Ann", 1), self.member("Bob", 2)
        eve = {"uid": "7", "uname": "Eve", "avatar": "red", "room_id": "1", "tab": "t"}
        # As when a page is closed between the application's batch and what it publishes after it.
        for message in ({"type": "close", "uname": "Eve", "tab": "t"}, {"type": "login"} | eve):
            self.assertEqual(self.redis.publish("mg:group:room-1", json.dumps(message)), 2)
        bob.says("end")
        ann.hears("end")
        ann.sees("Bob")
        self.assertEqual(ann.lines(".notice")[1:], ["Bob has come in"])

    def test_what_users_write_is_shown_as_text(self):
        ann = self.member("Ann", 1)
        evil = "<img src=x onerror='window.hacked=1'><b>x</b>"
        eve = self.member("<b>Eve</b>", 2)
        ann.sees("<b>Eve</b>")
        eve.says(evil)
        ann.hears(evil)
        # And what no page of ours would send.
        _, cookie = self.post("login", uname="Mal", avatar="<i>url(//x)</i>")
        self.assertEqual(self.post("say", cookie, room_id="1", text=evil)[0], 200)
        ann.until("document.querySelectorAll('#log .text').length === 2")
        self.assertEqual(ann.eval("document.querySelectorAll('main img, main b, main i').length"), 0)
        self.assertIsNone(ann.eval("window.hacked"))
        self.assertEqual(ann.complaints(), [])

    def test_a_page_whose_node_dies_goes_on_at_the_other_and_leaves_no_ghost(self):
        ann, bob, cid = self.member("Ann", 1), self.member("Bob", 2), self.member("Cid", 1)
        ann.sees("Bob", "Cid")
        back = "[...document.querySelectorAll('.notice')].filter(e => e.textContent === 'Connected again.').length"
        # Cid's page goes with the node, as when both lose their network: the node hears nothing of him any more.
        os.kill(self.node_pid(1), signal.SIGSTOP)
        cid.command("Network.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        cid.command("Network.emulateNetworkConditions", **offline)
        self.kill_node(1)
        ann.until(f"{back} === 1")
        ann.says("here again")
        bob.hears("here again")
        # Those who went with the node are told to have left when it is found dead; who came back was not missed.
        for page, other in ((ann, "Bob"), (bob, "Ann")):
            page.sees(other)
        self.assertEqual(bob.lines(".notice")[1:], ["Cid has come in", "Cid has left"])
        wait_for("the dead node's clients to go", lambda: self.redis.scard("mg:group:room-1:clients") == 2)

        # And once more, with the one on which the first is there again.
        lost = 1 + (ann.eval("nodes.indexOf(gate.url)") == 1)
        self.kill_node(2)
        bob.until(f"{back} === 1")
        ann.until(f"{back} === {lost}")
        bob.says("me too")
        ann.hears("me too")
        ann.sees("Bob")
        ann.close()
        bob.sees()
        self.assertEqual(bob.lines(".notice").count("Ann has left"), 1)

    def test_who_logs_out_is_out_on_all_tabs(self):
        ann, bob = self.member("Ann", 1), self.member("Bob", 2)
        tab = ann.tab(2)
        ann.click("#logout")
        for page in (ann, tab):
            page.until("!$('login').hidden && $('inside').hidden")
        bob.sees()
        # By the form, and not by the old cookie.
        tab.go(f"{self.address}/?node=1")
        tab.until("!$('login').hidden")
        tab.until("document.activeElement === $('uname')")
        tab.type("Anna")
        bob.sees("Anna")

    def test_the_application_believes_its_cookie_and_nothing_else(self):
        ann = self.member("Ann", 1)
        _, mal = self.post("login", uname="Mal", avatar="x")
        name, _, signature = mal.partition(".")
        payload = json.dumps({"uid": ann.uid(), "uname": "Ann", "avatar": "x"}).encode().hex()
        forged = f"chat={payload}.{signature}"
        for route in ("bind", "say", "logout"):
            for cookie in (None, "chat=", forged, name + ".", mal[:-1], mal.replace(".", ".0")):
                status, _ = self.post(route, cookie, room_id="1", text="x", client_id="0" * 20)
                self.assertEqual(status, 401, (route, cookie))
        for status, route, fields in (
            (403, "bind", {"client_id": "0" * 20}),
            (403, "bind", {"client_id": "0" * 20, "room_id": "9"}),
            (403, "bind", {"client_id": "0" * 20, "room_id": ["1"]}),
            (400, "bind", {"room_id": "1"}),
            (400, "bind", {"client_id": 7, "room_id": "1"}),
            (400, "bind", {"client_id": "no client id", "room_id": "1"}),
            # As of a page that is gone: nobody hears that it has come.
            (404, "bind", {"client_id": "7f0000010b5400000000", "room_id": "1"}),
            (403, "say", {"text": "x", "room_id": "9"}),
            (400, "say", {"room_id": "1"}),
            (400, "say", {"room_id": "1", "text": " "}),
            (400, "say", {"room_id": "1", "text": "x" * 3001}),
            (400, "say", {"room_id": "1", "text": "\ud800"}),
            (400, "say", {"room_id": "1", "text": "x", "to": ["a"]}),
            (404, "say", {"room_id": "1", "text": "x", "to": "nobody"}),
            (400, "login", {"uname": "x" * 61, "avatar": "x"}),
            (400, "login", {"uname": "x", "avatar": None}),
            (404, "nothing", {}),
        ):
            self.assertEqual(self.post(route, mal, **fields)[0], status, (route, fields))
        # A uid in the request is not looked at.
        self.assertEqual(self.post("say", mal, room_id="1", text="I am Ann", uid=ann.uid(), uname="Ann")[0], 200)
        ann.hears("I am Ann")
        self.assertEqual(ann.lines(".mine"), [])
        self.assertTrue(ann.lines(".who")[0].startswith("Mal"))
        ann.sees()
        self.assertEqual(ann.lines(".notice")[1:], [])

    def post(self, route, cookie=None, **fields):
        """Status, and the cookie that is set."""
        request = urllib.request.Request(f"{self.address}/{route}", json.dumps(fields).encode())
        if cookie:
            request.add_header("Cookie", cookie)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return answer.status, (answer.headers["Set-Cookie"] or "").partition(";")[0]
        except urllib.error.HTTPError as answer:
            return answer.code, None

    def test_the_page_speaks_both_languages_and_fits_a_phone(self):
        ann, bob = self.member("Ann", 1), self.member("小波", 2)
        bob.click("#language")
        bob.until("document.documentElement.lang === 'zh-CN'")
        self.assertEqual(bob.eval("document.querySelector('#say .main').textContent"), "发送")
        self.assertEqual(bob.eval("$('state').textContent"), "已连接：节点 2")
        long = "A word that is longer than any phone is wide: " + "x" * 300
        ann.says(long)
        bob.hears(long)
        bob.says("你好")
        ann.hears("你好")
        ann.says("只有你知道", to=bob)
        bob.hears("只有你知道")
        ann.sees("小波")
        for page in (ann, bob):
            for _, size, scheme in looks():
                look(page, size, scheme)
                self.is_in_sight(page, size)
            self.assertEqual(page.complaints(), [])
        ann.click("#logout")
        ann.until("!$('login').hidden")
        for way, size, scheme in looks():
            look(ann, size, scheme)
            picture(ann, f"chat-login-{way}")

    def is_in_sight(self, page, size):
        """What was said last, and the field for the next."""
        place = "[...document.querySelectorAll('#log > *')].pop().getBoundingClientRect().bottom"
        page.until(f"{place} < $('say').getBoundingClientRect().top")
        self.assertLess(page.eval("$('say').getBoundingClientRect().bottom"), size[1])
        self.assertEqual(page.eval("scrollY"), 0)

    def test_a_conversation_is_seen_in_the_room_and_in_the_console(self):
        for language, room, names, said in SCENES:
            ann, *others = (Member(self, name, node, query=f"&room={room}") for name, node in zip(names, (1, 2, 2)))
            ann.sees(*names[1:])
            console = Page(self.browser, ann.profile, f"{self.apis[0]}/#/tail/group/room-{room}")
            console.until("document.getElementById('tail-state').dataset.state === 'open'")
            for page in (ann, console):
                if not page.eval("document.documentElement.lang").startswith(language):
                    page.click("#language")
            # Its notices in that language, too.
            ann.go(f"{self.address}/?node=1&room={room}")
            ann.sees(*names[1:])
            for who, text in said:
                (ann, *others)[who].says(text)
                for page in (ann, *others):
                    page.hears(text)
            for who, text in said:
                console.until(f"document.getElementById('tail-log').textContent.includes({json.dumps(text)})")
            for way, size, scheme in looks():
                look(ann, size, scheme)
                self.is_in_sight(ann, size)
                picture(ann, f"chat-room-{language}-{way}")
                look(console, size, scheme)
                picture(console, f"console-tail-{language}-{way}")
            for page in (ann, *others, console):
                self.assertEqual(page.complaints(), [])


# Their language, the room, who speaks, and what they say.
SCENES = (
    (
        "en",
        1,
        ("Ann", "Bob", "Cid"),
        (
            (1, "Is the new build out?"),
            (0, "Since ten. Both nodes were restarted under us."),
            (2, "I have not noticed a thing."),
            (0, "That is the point"),
        ),
    ),
    (
        "zh",
        2,
        ("安然", "小波", "子墨"),
        (
            (1, "新版本上线了吗？"),
            (0, "十点就上了，两个节点都滚动重启过。"),
            (2, "完全没感觉到断线。"),
            (0, "要的就是这个效果"),
        ),
    ),
)


class InPhp(ChatRoom, unittest.TestCase):
    arguments = ("chat-room", "php")


class InPython(ChatRoom, unittest.TestCase):
    arguments = ("chat-room", "python")


if __name__ == "__main__":
    unittest.main(verbosity=2)
