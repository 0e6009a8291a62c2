"""examples/customer-service, as `examples/run` starts it: visitors and agents, some in a real browser, on both nodes.

scripts/check-examples runs it. With SCREENSHOTS=directory it leaves pictures of the pages there.
"""

import hashlib
import hmac
import json
import sqlite3
import threading
import time
import unittest
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from browser import Page
from example import Example, look, looks, picture
from support import DEADLINE, http, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

# Seconds in which who has lost his connection may come back; the page of a killed node needs up to two.
GRACE = 8
SECRET = "of the webhook"
# What can be used on a page, and has no name for who does not see it.
UNNAMED = """[...document.querySelectorAll('button, input, select')]
    .filter(e => e.getClientRects().length && !(e.ariaLabel || (e.labels?.[0] ?? e).textContent.trim()))
    .map(e => e.outerHTML)"""


class Person:
    """Somebody without a browser: asks as pages do, and keeps what he is pushed."""

    def __init__(self, test, role, name="", cookie=None):
        self.test, self.role, self.cookie = test, role, cookie
        if not cookie:
            status, _, self.cookie = self.ask("hello" if role == "visitor" else "login", name=name)
            test.assertEqual(status, 200)
        self.uid = bytes.fromhex(self.cookie.split("=")[1].split(".")[0]).decode()

    def ask(self, route, cookie=None, **fields):
        """Status, answer, and the cookie that is set."""
        body = json.dumps({"as": self.role} | fields).encode()
        request = urllib.request.Request(f"{self.test.address}/{route}", body)
        if cookie or self.cookie:
            request.add_header("Cookie", cookie or self.cookie)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return answer.status, json.load(answer), (answer.headers["Set-Cookie"] or "").partition(";")[0]
        except urllib.error.HTTPError as answer:
            return answer.code, json.load(answer), None

    def does(self, route, **fields):
        status, answer, _ = self.ask(route, **fields)
        self.test.assertEqual(status, 200, (route, fields, answer))
        return answer

    def says(self, text, key=None, **fields):
        return self.does("say", text=text, key=key or f"{text}-{time.monotonic_ns()}", **fields)

    def comes(self, node=1):
        """Connects, and waits until he is known to be here."""
        self.pushed = []
        self.socket = self.test.enterContext(self.test.dial(self.role, node, self.cookie))
        # An agent may hear of a change before.
        while json.loads(self.socket.recv(DEADLINE))["type"] != "init":
            pass
        threading.Thread(target=self.read, daemon=True).start()
        self.until_state("here")
        return self

    def read(self):
        try:
            for message in self.socket:
                self.pushed.append(json.loads(message))
        except ConnectionClosed:
            pass

    def until_state(self, state):
        sql = "SELECT 1 FROM people WHERE uid = ? AND state = ?"
        wait_for(f"{self.uid} is {state}", lambda: self.test.query(sql, self.uid, state))

    def heard(self, kind):
        return [message for message in list(self.pushed) if message["type"] == kind]


class Tab(Page):
    """A page of a visitor or an agent."""

    path = ""

    def __init__(self, test, name, node, profile=None):
        self.test, self.name = test, name
        self.profile = profile or test.browser.profile(test)
        super().__init__(test.browser, self.profile, f"{test.address}/{self.path}?node={node}")
        if profile is None:
            self.until("!$('login').hidden && document.activeElement === $('name')")
            self.type(name)
        self.until("$('state').dataset.state === 'open'")

    def tab(self, node):
        """Another tab of the same one."""
        return type(self)(self.test, self.name, node, self.profile)

    def uid(self):
        return self.eval("me.uid")

    def says(self, text):
        self.until("$('text').getClientRects().length")
        self.eval("$('text').focus()")
        self.type(text)

    def lines(self, kind=".text"):
        return self.eval(f"[...document.querySelectorAll('.log:not([hidden]) {kind}')].map(e => e.textContent)")

    def hears(self, text, kind=".text"):
        """Waits until this is the last of its kind."""
        last = f"[...document.querySelectorAll('.log:not([hidden]) {kind}')].pop()?.textContent"
        self.until(f"{last} === {json.dumps(text)}")


class Visitor(Tab):
    def stands(self, text):
        self.until(f"$('standing').textContent === {json.dumps(text)}")


class Agent(Tab):
    path = "agent"

    def serves(self, *names):
        shown = "JSON.stringify([...document.querySelectorAll('#visitors .theirs')].map(e => e.textContent))"
        self.until(f"{shown} === {json.dumps(json.dumps(names, ensure_ascii=False, separators=(',', ':')))}")

    def chooses(self, visitor):
        self.click(f'#visitors [data-visitor="{visitor}"]')


class Service(Example):
    arguments = ("customer-service",)
    environment = {"MOONGATE_WEBHOOK_SECRET": SECRET}

    def setUp(self):
        super().setUp()
        self.port = int(self.address.rpartition(":")[2]) - 8

    def query(self, sql, *values):
        """Asks for the application's own data, which stands in the directory of Redis."""
        directory = self.redis.config_get("dir")["dir"]
        with closing(sqlite3.connect(f"file:{directory}/desk.db?mode=ro", uri=True, timeout=DEADLINE)) as data:
            return data.execute(sql, values).fetchall()

    def dial(self, role, node, cookie):
        headers = {"Cookie": cookie} if cookie else {}
        address = f"ws://127.0.0.1:{self.port + 10 * (node - 1)}/?as={role}"
        return connect(address, additional_headers=headers, proxy=None)

    def visitors(self, *names):
        return [Person(self, "visitor", name).comes() for name in names]

    def agents(self, *names):
        return [Person(self, "agent", name).comes() for name in names]

    def said(self, visitor):
        """What stands in the database, without notes."""
        sql = "SELECT text FROM messages WHERE visitor = ? AND author <> '' ORDER BY id"
        return [text for (text,) in self.query(sql, visitor)]

    def tasks(self, state):
        body = json.dumps({"state": state}).encode()
        _, answer = http(f"http://127.0.0.1:{self.port + 1}/api/listTasks", body)
        ids = [task["id"] for task in json.loads(answer)["result"]["items"]]
        return [name for name in ids if name.startswith("gone-")]

    def tell(self, event, key=SECRET, at=None):
        """The status for an event that a node might have told."""
        body, at = json.dumps(event), int(at or time.time())
        signature = hmac.new(key.encode(), f"{at}.{body}".encode(), hashlib.sha256).hexdigest()
        headers = {"Moongate-Signature": f"t={at},v1={signature}"}
        request = urllib.request.Request(f"{self.address}/webhook", body.encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return answer.status
        except urllib.error.HTTPError as answer:
            return answer.code

    def cookie(self, page, name="visitor"):
        cookies = page.command("Network.getCookies", urls=[self.address])["cookies"]
        return next(f"{name}={cookie['value']}" for cookie in cookies if cookie["name"] == name)


class CustomerService(Service, unittest.TestCase):
    environment = Service.environment | {"GRACE": str(GRACE), "STATISTICS_EVERY": "1"}

    def test_visitors_wait_in_a_queue_and_hear_how_many_are_ahead_until_an_agent_is_free(self):
        ann = Agent(self, "Ann", 1)
        for visitor in self.visitors("V1", "V2", "V3"):
            visitor.says("hello")
        ann.serves("V1", "V2", "V3")
        # Three are all that she takes.
        dan, eve, fay = Visitor(self, "Dan", 1), Visitor(self, "Eve", 2), Visitor(self, "Fay", 1)
        dan.stands("What can we do for you?")
        for number, visitor in enumerate((dan, eve, fay)):
            visitor.says(f"I am {visitor.name}")
            visitor.stands(f"{number} ahead of you" if number else "You are the next")
        ann.until("$('waiting').textContent.startsWith('3 waiting')")
        # One who waits goes: those behind move up.
        eve.click("#finish")
        eve.stands("The conversation has ended. Write to begin another one.")
        fay.stands("1 ahead of you")
        # A place is free.
        ann.click("#finish")
        dan.hears("Welcome! Ann is here for you.", ".note")
        dan.stands("You talk with Ann")
        fay.stands("You are the next")
        ann.serves("V2", "V3", "Dan")
        # An agent comes.
        bob = Agent(self, "Bob", 2)
        fay.stands("You talk with Bob")
        bob.serves("Fay")
        bob.hears("I am Fay")
        # Whoever has fewest is next.
        eve.says("Once more")
        bob.serves("Fay", "Eve")
        for page in (ann, bob, dan, eve, fay):
            self.assertEqual(page.complaints(), [])

    def test_what_is_said_is_on_all_tabs_of_the_two_and_goes_on_when_a_node_is_killed(self):
        dan, ann = Visitor(self, "Dan", 1), Agent(self, "Ann", 2)
        dan.says("你好")
        ann.hears("你好")
        tabs = [dan, dan.tab(2), ann, ann.tab(1)]
        ann.says("What can I do?")
        for tab in tabs:
            tab.hears("What can I do?")
        lost = "window.lost = 0; gate.on('close', () => { lost += 1; })"
        for tab in tabs:
            tab.eval(lost)
        for node, text in ((1, "one"), (2, "two")):
            there = [tab for tab in tabs if tab.eval(f"$('state').textContent.endsWith('{node}')")]
            self.kill_node(node)
            # Said while some pages are away: they ask for it when they are back.
            person = dan if node == 1 else ann
            person.says(text)
            for tab in tabs:
                tab.hears(text)
            for tab in there:
                tab.until("lost > 0 && $('state').dataset.state === 'open'")
            ready = f"http://127.0.0.1:{self.port + 10 * node - 9}/readyz"
            wait_for("it is ready", lambda: http(ready)[0] == 200)
        for tab in tabs:
            self.assertEqual(tab.lines(), ["你好", "What can I do?", "one", "two"])
        # Nobody was taken to be gone. (When all of Dan's tabs were on the node, what Ann said was unread for a moment.)
        notes = [note for note in dan.lines(".note") if not note.startswith("While")]
        self.assertEqual(notes, ["Welcome! Ann is here for you."])
        # Said to all whom she serves, also on a tab that comes later.
        ann.click("#notice-text")
        ann.type("back in a minute")
        dan.until("$('notice').textContent === 'Ann: back in a minute'")
        late = dan.tab(1)
        late.until("$('notice').textContent === 'Ann: back in a minute'")
        ann.click("#notice button")
        for tab in (dan, late):
            tab.until("$('notice').textContent === ''")
        for tab in tabs:
            self.assertEqual(tab.complaints(), [])

    def test_while_both_speak_a_visitor_is_given_to_and_fro_and_nothing_is_lost_or_doubled(self):
        pages = {f"agent-{name}": Agent(self, name, node) for name, node in (("Ann", 1), ("Bob", 2))}
        dan = Visitor(self, "Dan", 1)
        dan.says("begin")
        uid = dan.uid()
        # They speak, and are given away, much faster than anybody types.
        visitor = Person(self, "visitor", cookie=self.cookie(dan))
        agents = {uid: Person(self, "agent", cookie=self.cookie(page, "agent")) for uid, page in pages.items()}
        turns, accepted, stop = 30, ["begin"], threading.Event()

        def serving():
            return self.query("SELECT max(agent) FROM conversations WHERE visitor = ?", uid)[0][0]

        wait_for("an agent", serving)

        def speak(person, name):
            number = 0
            while not stop.is_set() and number < 250:  # a page keeps 1,000 lines
                text = f"{name} {number}"
                status, _, _ = person.ask("say", visitor=uid, text=text, key=text)
                # An agent who serves him no more is told so; what is refused stands nowhere.
                self.assertIn(status, (200, 409) if person.role == "agent" else (200,))
                if status == 200:
                    accepted.append(text)
                    if number % 3 == 0:  # as of a page that has not heard the answer
                        self.assertEqual(person.ask("say", visitor=uid, text=text, key=text)[0], 200)
                number += 1

        with ThreadPoolExecutor() as pool:
            speaking = [pool.submit(speak, visitor, "Dan")]
            speaking += [pool.submit(speak, agent, name) for name, agent in agents.items()]
            for _ in range(turns):
                now = serving()
                agents[now].does("transfer", visitor=uid, to=next(other for other in agents if other != now))
            stop.set()
            for one in speaking:
                one.result()
        last = pages[serving()]
        last.until(f"threads.get('{uid}')")
        last.says("the end")
        accepted.append("the end")
        for page in (dan, last):
            page.hears("the end")
            self.assertEqual(sorted(page.lines()), sorted(accepted))
            self.assertEqual(page.lines(), self.said(uid), "in the order in which it stands in the database")
            self.assertEqual(page.complaints(), [])
        self.assertEqual(len([note for note in dan.lines(".note") if note.endswith("goes on from here.")]), turns)
        # He is in the group of the one who serves him, and in no other.
        for client in self.redis.smembers(f"mg:uid:{uid}:clients"):
            self.assertEqual(self.redis.smembers(f"mg:client:{client}:groups"), {serving()})
        [other] = [page for page in pages.values() if page is not last]
        other.serves()

    def test_however_many_come_at_once_no_agent_has_more_than_three_and_nobody_two_agents(self):
        ann, *_ = self.agents("Ann")
        agents = {agent.uid: agent for agent in (ann, *self.agents("Bob", "Cid"))}
        visitors = self.visitors(*(f"V{number}" for number in range(24)))
        ended = []

        def live(visitor):
            visitor.says("hello")
            sql = "SELECT agent FROM conversations WHERE visitor = ? AND agent IS NOT NULL"
            [[agent]] = wait_for("an agent", lambda: self.query(sql, visitor.uid))
            # Both end it, at once with the others; one of the two is told that there is none.
            status = visitor.ask("finish")[0], agents[agent].ask("finish", visitor=visitor.uid)[0]
            self.assertEqual(sorted(status), [200, 409])
            ended.append(visitor.uid)

        with ThreadPoolExecutor(len(visitors)) as pool:
            list(pool.map(live, visitors))
        self.assertEqual(len(ended), 24)
        self.assertEqual(self.query("SELECT count(*) FROM conversations WHERE ended IS NULL"), [(0,)])
        # How things were, at each change: it was pushed to all.
        wait_for("the last change", lambda: len(desks := ann.heard("desk")) > 24 and not desks[-1]["conversations"])
        for desk in ann.heard("desk"):
            served = [one["visitor"] for one in desk["conversations"]]
            self.assertEqual(len(served), len(set(served)))
            for agent in agents:
                self.assertLessEqual([one["agent"] for one in desk["conversations"]].count(agent), 3)
        for visitor in visitors:
            welcomes = [message for message in visitor.heard("message") if message["text"] == "assigned"]
            self.assertEqual(len(welcomes), 1)

    def test_who_is_not_there_has_unread_messages_and_they_are_marked_when_he_is_back(self):
        ann, dan = Agent(self, "Ann", 1), Visitor(self, "Dan", 2)
        dan.says("I have to go")
        ann.hears("I have to go")
        ann.says("heard at once")
        dan.hears("heard at once")
        uid = dan.uid()
        dan.close()
        wait_for("his client to go", lambda: not self.redis.scard(f"mg:uid:{uid}:clients"))
        for text in ("when you are back", "read this"):
            ann.says(text)
            ann.hears(text)
        ann.until("document.querySelector('#visitors .badge')?.textContent === '2 unread'")
        self.assertEqual(ann.lines(".unread .text"), ["when you are back", "read this"])
        dan = dan.tab(1)
        dan.hears("read this")
        self.assertEqual(dan.lines(".note")[-1], "While you were away: 2 messages")
        ann.until("!document.querySelector('.unread, .badge')")
        self.assertEqual(dan.lines(), ["I have to go", "heard at once", "when you are back", "read this"])

    def test_an_agent_who_comes_back_in_time_was_not_missed_and_of_one_who_does_not_the_visitors_go_first(self):
        ann, *_ = self.agents("Ann")
        dan, eve = Visitor(self, "Dan", 1), Visitor(self, "Eve", 2)
        for visitor in (dan, eve):
            visitor.says("hello")
            visitor.stands("You talk with Ann")
        # Away and back again: whoever was assigned stays so, and no task is left.
        for node in (2, 1, 2):
            ann.socket.close()
            ann.until_state("away")
            ann.comes(node)
        # Two tabs: one may go.
        first = ann.socket
        ann.comes(1)
        first.close()
        wait_for("one tab to go", lambda: self.redis.scard("mg:uid:agent-Ann:clients") == 1)
        wait_for("its task to be cancelled", lambda: not self.tasks("waiting"))
        self.assertEqual(ann.does("messages", visitor=dan.uid(), after=0)["messages"][0]["text"], "hello")
        for visitor in (dan, eve):
            self.assertEqual(visitor.lines(".note"), ["Welcome! Ann is here for you."])
        # Others wait, as she says that she is busy.
        ann.does("notice", notice="one moment")
        fay = Visitor(self, "Fay", 1)
        fay.says("hello")
        fay.stands("You are the next")
        # Gone: hers are ahead of Fay now, and nobody is lost.
        ann.socket.close()
        left = time.monotonic()
        fay.stands("2 ahead of you")
        self.assertGreater(time.monotonic() - left, GRACE - 0.5)
        dan.stands("You are the next")
        bob = Agent(self, "Bob", 2)
        bob.serves("Dan", "Eve", "Fay")
        lost = "Our colleague had to leave. You are at the head of the queue."
        notes = ["Welcome! Ann is here for you.", lost, "Welcome! Bob is here for you."]
        self.assertEqual(dan.lines(".note"), notes)
        # A visitor who goes while he waits, for good, is waited for no longer.
        gil, hal = self.visitors("Gil", "Hal")
        gil.says("hello")
        hal.says("hello")
        wait_for("his place", lambda: hal.heard("state") and hal.heard("state")[-1]["ahead"] == 1)
        gil.socket.close()
        wait_for("to move up", lambda: hal.heard("state")[-1]["ahead"] == 0)

    def test_who_says_something_and_never_connects_is_waited_for_no_longer_than_others(self):
        ghost = Person(self, "visitor", "Gus")
        waiting = "SELECT count(*) FROM conversations WHERE ended IS NULL"
        for text in ("hello", "hello again"):
            ghost.says(text)
            self.assertEqual(self.query(waiting), [(1,)])
            wait_for("the queue to be empty", lambda: self.query(waiting) == [(0,)])

    def test_an_agent_who_logs_out_is_gone_at_once_on_all_tabs(self):
        ann, dan = Agent(self, "Ann", 1), Visitor(self, "Dan", 1)
        tab = ann.tab(2)
        dan.says("hello")
        ann.serves("Dan")
        heard = "SELECT seq FROM people WHERE uid = 'agent-Ann'"
        before = self.query(heard)
        ann.click("#logout")
        dan.stands("You are the next")
        wait_for("her pages' end to be told", lambda: self.query(heard) > before)
        self.assertEqual(self.query("SELECT state FROM people WHERE uid = 'agent-Ann'"), [("out",)])
        self.assertEqual(self.tasks("waiting") + self.tasks("done"), [], "nothing was waited for")
        for page in (ann, tab):
            page.until("!$('login').hidden && $('inside').hidden && gate.state === 'closed'")
        # By the form, and not by the old cookie.
        tab.go(f"{self.address}/agent")
        tab.until("document.activeElement === $('name')")
        tab.type("Ann")
        tab.serves("Dan")
        dan.stands("You talk with Ann")

    def test_who_is_on_the_blacklist_is_closed_at_once_and_refused_from_then_on(self):
        ann, dan = Agent(self, "Ann", 1), Visitor(self, "Dan", 2)
        cookie = self.cookie(dan)
        dan.says("$@!")
        ann.hears("$@!")
        ann.click("#block")
        dan.until("!$('blocked').hidden && $('room').hidden && $('login').hidden && gate.state === 'closed'")
        ann.serves()
        for given in (cookie, None, "visitor=", "visitor=00.00", cookie[:-1], "agent" + cookie.removeprefix("visitor")):
            for node in (1, 2):
                with self.assertRaises(InvalidStatus) as refused:
                    self.dial("visitor", node, given)
                self.assertEqual(refused.exception.response.status_code, 403, given)
        dan.go(f"{self.address}/")
        dan.until("!$('blocked').hidden && $('room').hidden && $('login').hidden")
        # Nor is a visitor's cookie an agent's.
        agent = self.cookie(ann, "agent")
        for role, given in (("agent", cookie), ("visitor", agent), ("nobody", agent), ("", agent)):
            with self.assertRaises(InvalidStatus):
                self.dial(role, 1, given)
        with self.dial("agent", 1, agent):
            pass

    def test_either_side_ends_it_and_the_agent_sees_how_it_was(self):
        ann, dan, eve = Agent(self, "Ann", 1), Visitor(self, "Dan", 1), Visitor(self, "Eve", 2)
        for visitor in (dan, eve):
            visitor.says("hello")
        ann.serves("Dan", "Eve")
        ann.chooses(dan.uid())
        ann.eval("$('text').value = 'for Dan alone'")
        ann.chooses(eve.uid())
        self.assertEqual(ann.eval("$('text').value"), "")
        ann.chooses(dan.uid())
        self.assertEqual(ann.eval("$('text').value"), "for Dan alone")
        ann.click("#finish")
        dan.hears("Ann has ended the conversation.", ".note")
        eve.click("#finish")
        ann.serves()
        self.assertEqual(ann.eval("$('none').hidden"), False)
        dan.click("#stars [value='4']")
        dan.eval("$('comment').focus()")
        dan.type("quick <b>and</b> kind")
        dan.until("$('rate').hidden")
        ended = "[...document.querySelectorAll('#ended li')].map(e => e.textContent.trim())"
        ann.until(f"JSON.stringify({ended}) === '[\"Eve not rated\",\"Dan ★★★★ quick <b>and</b> kind\"]'")
        again = """fetch('rate', {method: 'POST', body: '{"rating": 1}'}).then(answer => answer.status)"""
        self.assertEqual(dan.eval(again), 409)
        # What was said before is there when they meet again.
        dan.says("one more thing")
        ann.hears("one more thing")
        self.assertEqual(ann.lines(), ["hello", "one more thing"])

    def test_every_time_the_cron_says_there_is_one_row_though_there_are_two_nodes(self):
        began = time.time()
        [ann] = self.agents("Ann")
        dan, eve = self.visitors("Dan", "Eve")
        dan.says("hello")
        eve.says("hello")
        dan.does("finish")
        dan.does("rate", rating=4, comment="")
        every = "SELECT * FROM statistics ORDER BY at"
        wait_for("rows", lambda: len(self.query(every)) >= 8)
        rows = self.query(every)
        times = [row[0] for row in rows]
        self.assertTrue(all(at % 1000 == 0 and at > began * 1000 - 1000 for at in times), times)
        self.assertEqual(len(times), len(set(times)))
        self.assertLessEqual(times[-1] - times[0], 1000 * (time.time() - began + 1))
        # Each conversation is counted in one of them.
        self.assertEqual(sum(row[3] for row in rows), 2)
        self.assertEqual(sum(row[4] for row in rows), 1)
        self.assertEqual([row[5] for row in rows if row[5] is not None], [4.0])
        self.assertEqual(rows[-1][1:3], (1, 0))
        wait_for("it is shown", lambda: ann.heard("desk")[-1]["minutes"][0]["at"] >= times[-1])
        # Told once more, as after an answer that was lost, it changes nothing.
        before = self.query("SELECT * FROM statistics WHERE at = ?", times[2])
        again = {"event": "task", "id": f"statistics@{times[2]}", "payload": {"do": "statistics"}}
        self.assertEqual(self.tell(again), 200)
        self.assertEqual(self.query("SELECT * FROM statistics WHERE at = ?", times[2]), before)

    def test_an_event_is_believed_when_a_node_has_signed_it_and_an_old_one_changes_nothing(self):
        [ann] = self.agents("Ann")
        [[seq]] = self.query("SELECT seq FROM people WHERE uid = 'agent-Ann'")
        gone = {"event": "unbound", "uid": "agent-Ann", "last": True, "first": False, "seq": seq + 1}
        self.assertEqual(self.tell(gone, key="another"), 400)
        self.assertEqual(self.tell(gone, at=time.time() - 3600), 400)
        self.assertEqual(ann.ask("webhook", **gone)[0], 400)
        # Overtaken by the one that is known; or another client of hers is still there.
        for old in (gone | {"seq": seq - 1}, gone | {"last": False}):
            self.assertEqual(self.tell(old), 200)
            self.assertEqual(self.query("SELECT state FROM people WHERE uid = 'agent-Ann'"), [("here",)], old)
        # Told twice, it is one: one task waits, and when it is told twice, too, she is gone once.
        for _ in range(2):
            self.assertEqual(self.tell(gone | {"seq": seq + 2}), 200)
        self.assertEqual(self.tasks("waiting"), [f"gone-agent-Ann-{seq + 2}"])
        ann.until_state("gone")
        self.assertEqual(self.tell({"event": "bound", "uid": "agent-Ann", "first": True, "seq": seq + 3}), 200)
        late = {"do": "gone", "uid": "agent-Ann", "seq": seq + 2}
        self.assertEqual(self.tell({"event": "task", "payload": late}), 200)
        self.assertEqual(self.query("SELECT state FROM people WHERE uid = 'agent-Ann'"), [("here",)])

    def test_the_application_believes_its_cookies_and_lets_nobody_at_others_conversations(self):
        ann, bob = self.agents("Ann", "Bob")
        dan, eve = self.visitors("Dan", "Eve")
        dan.says("hello")
        forged = "visitor=" + dan.uid.encode().hex() + "." + eve.cookie.rpartition(".")[2]
        for route in ("enter", "messages", "say", "finish", "rate"):
            for cookie in ("visitor=", forged, dan.cookie[:-1], "agent" + dan.cookie.removeprefix("visitor")):
                self.assertEqual(dan.ask(route, cookie, text="x", key="x")[0], 401, (route, cookie))
        for route in ("logout", "transfer", "notice", "block"):
            self.assertEqual(dan.ask(route, visitor=dan.uid, to="agent-Bob", notice="x")[0], 401, route)
        # A visitor is himself, whomever he names; an agent is who serves.
        self.assertEqual(eve.does("messages", visitor=dan.uid)["messages"], [])
        for route in ("messages", "say", "finish", "transfer", "block"):
            self.assertEqual(bob.ask(route, visitor=dan.uid, text="x", key="x", to="agent-Bob")[0], 409, route)
        for status, person, route, fields in (
            (400, dan, "say", {"key": "1"}),
            (400, dan, "say", {"key": "1", "text": " "}),
            (400, dan, "say", {"key": "1", "text": "x" * 3001}),
            (400, dan, "say", {"key": "1", "text": "\ud800"}),
            (400, dan, "say", {"key": ["1"], "text": "x"}),
            (400, dan, "rate", {"rating": 6}),
            (400, dan, "rate", {"rating": "5"}),
            (400, dan, "rate", {"rating": 5, "comment": ["x"]}),
            (409, dan, "rate", {"rating": 5}),
            (401, dan, "enter", {"as": ["visitor"]}),
            (400, dan, "hello", {"name": "x" * 61}),
            (400, ann, "say", {"text": "to whom?", "key": "1"}),
            (409, ann, "transfer", {"visitor": dan.uid, "to": "agent-Ann"}),
            (409, ann, "transfer", {"visitor": dan.uid, "to": "agent-Nobody"}),
            (409, ann, "transfer", {"visitor": dan.uid, "to": eve.uid}),
            (400, ann, "notice", {"notice": "x" * 301}),
            (404, ann, "store", {}),
        ):
            self.assertEqual(person.ask(route, **fields)[0], status, (route, fields))
        # Nor does somebody take a place that there is not.
        for visitor in self.visitors("V1", "V2", "V3", "V4", "V5"):
            visitor.says("hello")
        self.assertEqual(ann.ask("transfer", visitor=dan.uid, to="agent-Bob")[0], 409)
        self.assertEqual(self.said(dan.uid), ["hello"])

    def test_what_others_write_is_shown_as_text(self):
        ann, dan = Agent(self, "<b>Ann</b>", 1), Visitor(self, "<i>Dan</i>", 2)
        evil = "<img src=x onerror='window.hacked=1'><b>x</b>" + "x" * 300
        for page in (dan, ann):
            page.says(evil)
            for other in (dan, ann):
                other.hears(evil)
        ann.click("#notice-text")
        ann.type(evil)
        dan.until("$('notice').textContent.includes('<b>x</b>')")
        for page in (dan, ann):
            html = "document.querySelectorAll('main img, main i, .log b, #list b, #notice b').length"
            self.assertEqual(page.eval(html), 0)
            self.assertIsNone(page.eval("window.hacked"))
            self.assertEqual(page.complaints(), [])
            # Nor does a word that is wider than a phone widen the page.
            for _, size, scheme in looks():
                look(page, size, scheme)


# An agent and his node, what he and a visitor say in turn, another visitor who has gone before the answer, a third who
# has just come, and what a fourth said of it all.
SCENES = {
    "en": ("Ann", 1, "Dan", ["Where is my parcel?", "It left yesterday, and will be there tomorrow.", "Great, thank you!"],
        "Eve", ["Do you ship abroad?", "We do, to all of Europe."], "Gil", "May I change my order?", "Kim", "Quick and kind!"),
    "zh": ("小雅", 2, "小波", ["请问今天几点关门？", "您好，我们营业到晚上八点。", "好的，谢谢！"],
        "王先生", ["可以寄到国外吗？", "可以的，支持三十多个国家和地区。"], "李女士", "我想修改收货地址", "赵先生", "回复很快，很耐心"),
}


class AsItIs(Service, unittest.TestCase):
    def test_of_two_rows_of_statistics_that_overtake_each_other_each_counts_its_own_minute(self):
        dan = Person(self, "visitor", "Dan")
        dan.says("hello")
        [[began]] = self.query("SELECT began FROM conversations WHERE visitor = ?", dan.uid)
        for at, count in ((began + 60001, 0), (began + 30000, 1)):
            task = {"event": "task", "id": f"statistics@{at}", "payload": {"do": "statistics"}}
            self.assertEqual(self.tell(task), 200)
            self.assertEqual(self.query("SELECT began FROM statistics WHERE at = ?", at), [(count,)])

    def test_the_pages_speak_both_languages_and_fit_a_phone(self):
        login = Agent(self, "Out", 1)
        login.click("#logout")
        login.until("!$('login').hidden")
        pages = {}
        for language, (name, node, first, dialog, second, missed, third, question, fourth, comment) in SCENES.items():
            agent, visitor = Agent(self, name, node), Visitor(self, first, node)
            if language == "zh":
                for page in (agent, visitor):
                    page.click("#language")
                    page.until("document.documentElement.lang === 'zh-CN'")
            [rater, goes, comes] = self.visitors(fourth, second, third)
            rater.says(question)
            agent.serves(fourth)
            rater.does("finish")
            rater.does("rate", rating=5, comment=comment)
            for number, text in enumerate(dialog):
                (visitor, agent)[number % 2].says(text)
                for page in (visitor, agent):
                    page.hears(text)
            goes.says(missed[0])
            agent.serves(first, second)
            goes.socket.close()
            wait_for("him to go", lambda: not self.redis.scard(f"mg:uid:{goes.uid}:clients"))
            agent.chooses(goes.uid)
            agent.says(missed[1])
            agent.hears(missed[1])
            comes.says(question)
            agent.serves(first, second, third)
            agent.chooses(visitor.uid())
            pages |= {f"agent-{language}": agent, f"visitor-{language}": visitor}
        self.assertEqual(visitor.eval("document.querySelector('#say .main').textContent"), "发送")
        visitor.stands("客服 小雅 正在为您服务")
        waits = Visitor(self, "Ina", 1)
        waits.says("Are you open on Sundays?")
        waits.stands("You are the next")
        ends = Visitor(self, "Joe", 1)
        ends.says("Never mind")
        ends.stands("1 ahead of you")
        agent.says("不客气")
        for minute in [*range(-9, 0), 0]:
            at = time.time() if minute == 0 else (time.time() // 60 + minute) * 60
            row = {"event": "task", "id": f"statistics@{int(at * 1000)}", "payload": {"do": "statistics"}}
            self.assertEqual(self.tell(row), 200)
        for name, page in (pages | {"waits": waits, "login": login}).items():
            self.fits(page, name)
        pages["agent-zh"].click("#finish")
        visitor.until("!$('rate').hidden")
        visitor.click("#stars [value='4']")
        self.fits(visitor, "rates")

    def fits(self, page, name):
        for way, size, scheme in looks():
            look(page, size, scheme)
            if page.eval("Boolean($('standing')) && !$('room').hidden"):
                # What was said last and the field for the next are in sight.
                place = "[...document.querySelectorAll('.log > *')].pop().getBoundingClientRect().bottom"
                page.until(f"{place} < $('say').getBoundingClientRect().top")
                self.assertLess(page.eval("$('say').getBoundingClientRect().bottom"), size[1])
            self.assertEqual(page.eval(UNNAMED), [])
            picture(page, f"service-{name}-{way}")
        self.assertEqual(page.complaints(), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
