"""examples/portal, as `examples/run` starts it: pages in a real browser on both nodes.

scripts/check-examples runs it. With SCREENSHOTS=directory it leaves pictures of the page there.
"""

import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import time
import unittest
import urllib.error
import urllib.request

from browser import Page
from example import Example, look, looks, picture
from support import DEADLINE, ROOT, http, wait_for
from websockets.sync.client import connect

MEI, ANN, BOB = "1", "42", "43"
SECRET = "what the nodes sign with"


class Visitor(Page):
    """Somebody's tab of the portal."""

    def __init__(self, test, uid, node=1, profile=None, query=""):
        self.profile = profile or test.browser.profile(test)
        super().__init__(test.browser, self.profile, f"{test.address}/?node={node}{query}")
        if profile is None:
            self.login(uid)
        self.is_live()

    def login(self, uid):
        self.click(f'#login button[value="{uid}"]')

    def is_live(self):
        self.until("$('state').dataset.state === 'open'")

    def orders(self, item):
        self.until("!$('order').hidden && !$('item').value")
        self.eval("$('item').focus()")
        self.type(item)

    def shows(self, number, step):
        """Waits until an order is so far."""
        self.until(f"document.querySelector('[data-key=\"order {number}\"] .step')?.dataset.step === '{step}'")

    def steps(self, number):
        """Clicks on what moves an order on."""
        self.click(f'#orders [data-key="step {number}"]')

    def unread(self):
        return self.eval("[...document.querySelectorAll('#orders .unread')].map(e => e.dataset.key)")

    def is_there(self, uid, there):
        """Waits until the dot of a customer says so."""
        dot = f"document.querySelector('[data-key=\"user {uid}\"] .dot')"
        self.until(f"{dot}?.classList.contains('on') === {json.dumps(there)}")


class Portal(Example):
    arguments = ("portal",)

    def visitor(self, uid, node=1):
        return Visitor(self, uid, node)

    def ask(self, path, cookie=None, body=None, headers=None):
        """Status, the answer's JSON, and the cookie that is set."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        headers = {"Cookie": cookie or ""} | (headers or {})
        request = urllib.request.Request(f"{self.address}/{path}", body, headers)
        try:
            answer = urllib.request.urlopen(request, timeout=DEADLINE)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, json.load(answer), (answer.headers["Set-Cookie"] or "").partition(";")[0]

    def cookie(self, uid):
        status, _, cookie = self.ask("login", body={"uid": uid})
        self.assertEqual(status, 200)
        return cookie

    def node(self, number):
        """The addresses of a node: clients, and API."""
        port = int(self.address.rpartition(":")[2]) - 8 + 10 * (number - 1)
        return f"ws://127.0.0.1:{port}/", f"http://127.0.0.1:{port + 1}"

    def bound(self, cookie, node):
        """A connection as a page makes it."""
        socket = self.enterContext(connect(self.node(node)[0], proxy=None))
        hello = json.loads(socket.recv(DEADLINE))
        self.assertEqual(self.ask("bind", cookie, {"client_id": hello["client_id"], "uid": MEI})[0], 200)
        return socket, hello


class AsItIs(Portal, unittest.TestCase):
    """With the settings that users have."""

    environment = {"MOONGATE_WEBHOOK_SECRET": SECRET}

    def test_a_page_is_greeted_and_bound_and_hears_of_it_before_all_that_is_its_users(self):
        ann, mei = self.cookie(ANN), self.cookie(MEI)
        pages = [self.bound(ann, node) for node in (1, 2)]
        self.assertEqual(self.ask("order", ann, {"item": "tea"})[0], 200)
        self.assertEqual(self.ask("step", mei, {"id": 1, "step": 1})[1]["told"], True)
        for socket, hello in pages:
            self.assertEqual(hello.keys(), {"type", "client_id", "message", "timestamp"})
            self.assertEqual((hello["type"], hello["message"]), ("SERVER_INIT", "Welcome to the shop."))
            self.assertLess(abs(hello["timestamp"] - time.time()), 60)
            heard = [json.loads(socket.recv(DEADLINE)) for _ in range(3)]
            # Whose page it is says the cookie, and not the uid in the request.
            self.assertEqual(heard[0], {"type": "PORTAL_BIND", "uid": ANN})
            self.assertEqual([(each["type"], each["order"]["step"]) for each in heard[1:]], [("order", 0), ("order", 1)])

    def test_an_order_that_moves_on_is_shown_at_once_on_all_devices_of_its_customer_and_to_all_staff(self):
        ann, phone, bob = self.visitor(ANN, 1), self.visitor(ANN, 2), self.visitor(BOB, 2)
        mei, other = self.visitor(MEI, 2), self.visitor(MEI, 1)
        ann.orders("茶壶")
        for page in (ann, phone, mei, other):
            page.shows(1, 0)
        for step in (1, 2, 3):
            mei.steps(1)
            for page in (ann, phone, mei, other):
                page.shows(1, step)
        # The answer may come after what is pushed.
        mei.until("$('said').textContent === 'Ann has been told.'")
        self.assertEqual(phone.eval("$('said').textContent"), "Order 1 is now delivered.")
        self.assertEqual(ann.unread() + phone.unread(), [])
        # Two of the staff click at once: it is done once, and the other is told so.
        bob.orders("a cup")
        mei.shows(2, 0)
        self.assertEqual(self.ask("step", self.cookie(MEI), {"id": 2, "step": 1})[0], 200)
        mei.eval("act('step', { id: 2, step: 1 })")
        self.assertEqual(mei.eval("$('problem').textContent"), "That has been done already.")
        bob.shows(2, 1)
        for page in (ann, phone):
            self.assertEqual(page.eval("orders.size"), 1)
        for page in (ann, phone, bob, mei, other):
            self.assertEqual(page.complaints(), [])

    def test_what_nobody_heard_is_unread_at_the_next_login_until_it_is_read_on_one_device(self):
        mei, ann = self.visitor(MEI, 2), self.visitor(ANN, 1)
        for item in ("pot", "cup"):
            ann.orders(item)
        mei.shows(2, 0)
        ann.click("#logout")
        ann.until("!$('login').hidden")
        mei.is_there(ANN, False)
        mei.steps(1)
        mei.until("$('said').textContent === 'Ann is not here, and sees it at the next login.'")
        ann.login(ANN)
        phone = self.visitor(ANN, 2)
        for page in (ann, phone):
            page.shows(1, 1)
            self.assertEqual(page.unread(), ["order 1"])
        mei.steps(2)
        phone.shows(2, 1)
        self.assertEqual(phone.unread(), ["order 1"])
        ann.click("#read")
        for page in (ann, phone):
            page.until("!document.querySelector('#orders .unread') && $('read').hidden")
        phone.go(f"{self.address}/")
        phone.shows(2, 1)
        self.assertEqual(phone.unread(), [])

    def test_what_is_announced_is_on_all_pages_at_once_and_said_again_when_it_is_due(self):
        mei, ann, bob = self.visitor(MEI, 1), self.visitor(ANN, 1), self.visitor(BOB, 2)
        said = "[e.className, e.querySelector('.theirs').textContent]"
        notice = f"[...document.querySelectorAll('#notices .notice')].map(e => {said}.join()).join()"
        mei.eval("$('text').focus()")
        mei.type("Maintenance")
        for page in (mei, ann, bob):
            page.until(f"{notice} === 'notice,Maintenance'")
        at = ann.eval("[...notices.values()][0].at")
        for page in (mei, ann, bob):
            page.until(f"{notice} === 'notice due,Maintenance'")
        self.assertGreaterEqual(time.time(), at - 1)
        # It stands there for who comes later, until it is taken down.
        late = self.visitor(BOB, 1)
        late.until(f"{notice} === 'notice due,Maintenance'")
        mei.click("#notices button")
        for page in (mei, ann, bob, late):
            page.until(f"{notice} === ''")
            self.assertEqual(page.complaints(), [])

    def test_what_is_withdrawn_in_time_is_never_said(self):
        mei, ann = self.cookie(MEI), self.bound(self.cookie(ANN), 2)[0]
        never = self.ask("announce", mei, {"text": "never", "seconds": 60})[1]["notice"]["id"]
        self.assertEqual(self.ask("withdraw", mei, {"id": never})[0], 200)
        due = self.ask("announce", mei, {"text": "in time", "seconds": 3})[1]["notice"]["id"]
        heard = [json.loads(ann.recv(DEADLINE)) for _ in range(5)]
        ids = [each.get("id") or each["notice"]["id"] for each in heard[1:]]
        told = list(zip([each["type"] for each in heard[1:]], ids))
        self.assertEqual(told, [("notice", never), ("withdrawn", never), ("notice", due), ("due", due)])

    def test_the_nightly_report_is_at_two_in_shanghai(self):
        self.cookie(MEI)
        # To arrange it again changes nothing, and no notice has its name.
        self.assertEqual(self.ask("withdraw", self.cookie(MEI), {"id": "nightly-report"})[0], 200)
        for number in (1, 2):
            _, tasks = http(self.node(number)[1] + "/api/listTasks", b"{}")
            [task] = json.loads(tasks)["result"]["items"]
            self.assertEqual((task["id"], task["next_at"] % 86400000), ("nightly-report", 18 * 3600 * 1000))

    def test_staff_see_who_is_there_also_when_a_node_dies(self):
        mei = self.visitor(MEI, 2)
        mei.is_there(ANN, False)
        # Ann's first device does not come back when its node dies.
        self.bound(self.cookie(ANN), 1)
        mei.is_there(ANN, True)
        phone = self.visitor(ANN, 2)
        phone.close()
        # It is online by its other device; Bob's coming is told after that.
        bob = self.visitor(BOB, 1)
        mei.is_there(BOB, True)
        mei.is_there(ANN, True)
        bob.close()
        mei.is_there(BOB, False)
        mei.until("document.querySelector('[data-key=\"user 43\"] small').textContent.startsWith('last here')")
        mei.is_there(ANN, True)
        bob = self.visitor(BOB, 1)
        mei.is_there(BOB, True)
        bob.eval("gate.on('close', () => { window.ended = true; })")
        self.kill_node(1)
        mei.is_there(ANN, False)
        bob.until("window.ended")
        bob.is_live()
        mei.is_there(BOB, True)
        # And so says what the application has stored.
        mei.go(f"{self.address}/?node=2")
        mei.is_there(BOB, True)
        mei.is_there(ANN, False)

    def event(self, **fields):
        """Tells the application of an event, signed as by a node."""
        body = json.dumps(fields).encode()
        now = int(time.time())
        signature = hmac.new(SECRET.encode(), b"%d." % now + body, hashlib.sha256).hexdigest()
        return self.ask("hook", None, body, {"Moongate-Signature": f"t={now},v1={signature}"})

    def test_without_a_secret_no_event_is_believed(self):
        event = "Push::event('{}', 't=' . time() . ',v1=' . hash_hmac('sha256', time() . '.{}', $key), $key)"
        script = f"require '{ROOT}/examples/portal/Push.php'; foreach (['key', ''] as $key) echo json_encode({event});"
        self.assertEqual(subprocess.check_output(["php", "-r", script], text=True), "[]null")

    def test_a_page_asks_until_it_is_answered(self):
        ann = self.visitor(ANN, 1)
        ann.command("Network.enable")
        ann.command("Network.setBlockedURLs", urls=["*/home"])
        ann.go(self.address)
        self.assertFalse(ann.eval("ask('home').then((answer) => answer.ok)"))
        ann.command("Network.setBlockedURLs", urls=[])
        ann.until("me")
        ann.is_live()

    def test_an_event_that_comes_twice_or_late_changes_nothing(self):
        mei = self.cookie(MEI)

        def presence():
            return {each["uid"]: each["online"] for each in self.ask("home", mei)[1]["presence"]}

        online = {"event": "bound", "uid": ANN, "seq": 1795325054000002, "first": True}
        offline = {"event": "unbound", "uid": ANN, "seq": 1795325054000001, "last": True}
        later = offline | {"seq": online["seq"] + 1}
        story = ((online, 1, True), (online, 1, True), (offline, 1, False), (later, 0, True), (online, 0, False))
        for event, there, is_news in story:
            status, answer, _ = self.event(**event)
            self.assertEqual((status, len(answer["commands"]), presence()[ANN]), (200, int(is_news), there), event)
        # As when the answer to the first attempt was lost: the same report.
        cookie = self.cookie(ANN)
        self.ask("order", cookie, {"item": "pot"})
        reports = []
        for attempt in (1, 2):
            task = {"id": "nightly-report@1", "at": attempt, "attempt": attempt, "payload": {"job": "report"}}
            reports.append(self.event(event="task", **task)[1]["commands"][0]["message"]["report"])
            self.ask("order", cookie, {"item": "cup"})
        self.assertEqual(reports[0], {"id": "nightly-report@1", "at": 1, "step0": 1, "step1": 0, "step2": 0, "step3": 0})
        self.assertEqual(reports[1], reports[0])
        self.assertEqual(self.ask("home", mei)[1]["reports"], reports[:1])

    def test_the_application_believes_its_cookie_and_the_nodes_signature_and_nothing_else(self):
        mei, ann = self.cookie(MEI), self.cookie(ANN)
        forged = (mei[:-1], mei.replace(".", ".0"), mei.replace("=1.", "=42."), ann.replace("=42.", "=1."))
        body = {"id": 1, "step": 1, "item": "x", "text": "x", "seconds": 1, "client_id": "0" * 20}
        for path in ("home", "bind", "order", "step", "read", "announce", "withdraw", "logout"):
            for cookie in (None, "portal=", "portal=1", *forged):
                status, _, _ = self.ask(path, cookie, None if path == "home" else body)
                self.assertEqual(status, 401, (path, cookie))
        for status, cookie, path, body in (
            (403, ann, "step", {"id": 1, "step": 1}),
            (403, ann, "announce", {"text": "x", "seconds": 1}),
            (403, ann, "withdraw", {"id": "x"}),
            (403, mei, "order", {"item": "x"}),
            (403, None, "login", {"uid": "7"}),
            (400, None, "login", {"uid": 1}),
            (400, ann, "order", {"item": " "}),
            (400, ann, "order", {"item": "x" * 301}),
            (400, ann, "order", {"item": ["x"]}),
            (400, mei, "step", {"id": "1", "step": 1}),
            (400, mei, "step", {"id": 1, "step": 4}),
            (409, mei, "step", {"id": 1, "step": 1}),
            (400, mei, "announce", {"text": "x", "seconds": 0}),
            (400, ann, "bind", {"client_id": "no client id"}),
            (404, ann, "bind", {"client_id": "7f0000010b5400000000"}),
            (404, ann, "nothing", {}),
            (400, ann, "order", b"{"),
        ):
            self.assertEqual(self.ask(path, cookie, body)[0], status, (path, body))
        self.assertEqual(self.ask("home", ann)[1]["orders"], [])
        body = json.dumps({"event": "bound", "uid": ANN, "seq": 1, "first": True}).encode()

        def signed(secret, at):
            return f"t={at},v1=" + hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()

        now = int(time.time())
        wrong = (signed("another", now), signed("", now), signed(SECRET, now - 400), signed(SECRET, now)[:-1])
        for signature in ("", "t=1,v1=x", *wrong):
            self.assertEqual(self.ask("hook", None, body, {"Moongate-Signature": signature})[0], 403, signature)
        self.assertEqual(self.ask("home", mei)[1]["presence"], [])

    def test_the_application_goes_on_when_no_node_answers(self):
        mei, ann = self.visitor(MEI, 2), self.visitor(ANN, 1)
        ann.orders("pot")
        mei.shows(1, 0)
        nodes = [self.node_pid(number) for number in (1, 2)]
        try:
            for node in nodes:
                os.kill(node, signal.SIGSTOP)
            mei.steps(1)
            mei.shows(1, 1)
            mei.until("$('said').textContent === 'Ann is not here, and sees it at the next login.'")
            # What only the gateway can do is refused, and nothing is promised.
            mei.eval("$('text').focus()")
            mei.type("Maintenance")
            mei.until("$('problem').textContent.startsWith('Nobody has taken that.')")
            self.assertEqual(mei.eval("[$('text').value, notices.size]"), ["Maintenance", 0])
            ann.go(f"{self.address}/")
            ann.shows(1, 1)
            self.assertEqual(ann.unread(), ["order 1"])
        finally:
            for node in nodes:
                os.kill(node, signal.SIGCONT)
        for page in (ann, mei):
            page.is_live()
        mei.steps(1)
        ann.shows(1, 2)

    def test_who_logs_out_is_out_on_all_tabs_of_this_browser_and_stays_on_other_devices(self):
        ann, phone = self.visitor(ANN, 1), self.visitor(ANN, 2)
        tab = Visitor(self, ANN, 2, ann.profile)
        phone.eval("gate.on('close', ({ code }) => { window.end = code; })")
        ann.click("#logout")
        for page in (ann, tab):
            page.until("!$('login').hidden && $('inside').hidden && gate.state === 'closed'")
        phone.until("window.end === 4000")
        phone.is_live()
        # Another login on this tab shows nothing of the first.
        phone.orders("pot")
        phone.shows(1, 0)
        ann.login(BOB)
        ann.is_live()
        self.assertEqual(ann.eval("orders.size"), 0)

    def test_what_users_write_is_shown_as_text(self):
        mei, ann = self.visitor(MEI, 2), self.visitor(ANN, 1)
        evil = "<img src=x onerror='window.hacked=1'><b>x</b>"
        ann.orders(evil)
        mei.shows(1, 0)
        self.assertEqual(mei.eval("document.querySelector('#orders b').textContent"), evil)
        mei.eval("$('text').focus()")
        mei.type(evil)
        for page in (mei, ann):
            page.until(f"document.querySelector('#notices .theirs')?.textContent === {json.dumps(evil)}")
            made = "document.querySelectorAll('main img, #notices img, #notices b, #orders b b').length"
            self.assertEqual(page.eval(made), 0)
            self.assertIsNone(page.eval("window.hacked"))
            self.assertEqual(page.complaints(), [])

    def test_what_is_pushed_takes_away_neither_the_focus_nor_a_click(self):
        mei, ann = self.visitor(MEI, 2), self.visitor(ANN, 1)
        ann.orders("pot")
        mei.shows(1, 0)
        mei.eval("document.querySelector('[data-key=\"step 1\"]').focus()")
        ann.orders("cup")
        mei.shows(2, 0)
        mei.type("")
        ann.shows(1, 1)
        # What is pushed while the button is down.
        box = "(e => [e.left + 9, e.top + 9])(document.querySelector('[data-key=\"step 2\"]').getBoundingClientRect())"
        x, y = mei.eval(box)
        mouse = {"x": x, "y": y, "button": "left", "clickCount": 1}
        mei.command("Input.dispatchMouseEvent", type="mousePressed", **mouse)
        ann.orders("saucer")
        mei.shows(3, 0)
        mei.command("Input.dispatchMouseEvent", type="mouseReleased", **mouse)
        ann.shows(2, 1)

    def test_the_page_speaks_both_languages_and_fits_a_phone(self):
        mei, ann, bob = self.visitor(MEI, 2), self.visitor(ANN, 1), self.visitor(BOB, 1)
        for item in ("A blue teapot", "A cap for the Donaudampfschifffahrtsgesellschaftskapitän", "两只茶杯"):
            ann.orders(item)
        mei.shows(3, 0)
        bob.orders("茶叶 100 克")
        mei.shows(4, 0)
        bob.click("#logout")
        mei.is_there(BOB, False)
        for number, steps in ((1, 3), (2, 2), (4, 1)):
            for step in range(steps):
                mei.steps(number)
                mei.shows(number, step + 1)
        ann.shows(2, 2)
        report = {"event": "task", "id": "nightly-report@1", "at": 1795284000000, "payload": {"job": "report"}}
        self.assertEqual(self.event(**report)[0], 200)
        self.ask("announce", self.cookie(MEI), {"text": "系统维护 · Maintenance", "seconds": 3600})
        bob.click("#language")
        bob.until("document.documentElement.lang === 'zh-CN'")
        again = self.visitor(BOB, 2)
        again.click("#language")
        again.until("$('state').textContent === '实时：节点 2'")
        self.assertEqual(again.eval("document.querySelector('#order .main').textContent"), "下单")
        self.assertEqual(again.unread(), ["order 4"])
        staff = self.visitor(MEI, 1)
        staff.until("reports.size")
        staff.click("#language")
        shown = {"staff-en": mei, "staff-zh": staff, "customer-en": ann, "customer-zh": again, "login-zh": bob}
        for name, page in shown.items():
            if page is not bob:
                page.is_live()
            for way, size, scheme in looks():
                look(page, size, scheme)
                picture(page, f"portal-{name}-{way}")
            # Whatever one can use has a name.
            usable = "[...document.querySelectorAll('button, input, select')]"
            self.assertTrue(page.eval(f"{usable}.every(e => e.labels?.[0]?.textContent || e.textContent)"))
            self.assertEqual(page.complaints(), [])

    def test_what_the_readme_shows_of_other_frameworks_is_php(self):
        shown = 0
        for name in ("README.md", "README.zh-CN.md"):
            for code in re.findall(r"```php\n(.*?)```", (ROOT / "examples/portal" / name).read_text(), re.DOTALL):
                linted = subprocess.run(["php", "-l"], input=f"<?php {code}", capture_output=True, text=True, timeout=DEADLINE)
                self.assertEqual(linted.returncode, 0, linted.stdout)
                shown += 1
        self.assertGreaterEqual(shown, 6)


class EachSecond(Portal, unittest.TestCase):
    """What takes a night, and minutes, in seconds."""

    environment = {"REPORT_CRON": "* * * * * *", "MOONGATE_PING_INTERVAL": "2s"}

    def test_the_report_is_made_once_each_time_for_both_nodes_and_pushed_to_staff(self):
        mei = self.cookie(MEI)
        socket, _ = self.bound(mei, 2)
        heard = []
        while len(heard) < 5:
            message = json.loads(socket.recv(DEADLINE))
            if message["type"] == "report":
                heard.append(message["report"]["id"])
                socket.send("still here")
        # Each has a second of its own.
        self.assertEqual(len(set(heard)), 5, heard)
        for report in heard:
            self.assertRegex(report, "^nightly-report@[0-9]+000$")

    def test_a_page_is_kept_by_its_heartbeat_and_one_without_it_is_cut(self):
        ann, silent = Visitor(self, ANN, 1, query="&heartbeat=0.5"), Visitor(self, BOB, 1, query="&heartbeat=0")
        for page in (ann, silent):
            page.eval("window.closes = []; gate.on('close', ({ code }) => closes.push(code))")
        silent.until("closes.length >= 2 && closes.every(code => code === 4002)")
        silent.is_live()
        self.assertEqual(ann.eval("closes"), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
