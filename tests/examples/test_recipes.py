"""docs/recipes.md, as it stands there: its PHP behind PHP's own server, its pages in a real browser, its lines in a shell,
with a Redis and two nodes that have the settings of the recipe. What a page or a client heard is what is looked at.

scripts/check-examples runs it. docs/recipes.zh-CN.md has the same code but for its comments, and is compared.
"""

import datetime
import json
import re
import shlex
import subprocess
import tempfile
import time
import unittest
import zlib
from pathlib import Path
from zoneinfo import ZoneInfo

from browser import Browser, Page
from support import DEADLINE, ROOT, Program, free_port, http, wait_for
from test_examples import Client, World
from websockets.exceptions import ConnectionClosed, InvalidStatus

# An application: the functions of a recipe by their names, with the uid of the page's cookie, or what the test says.
APPLICATION = """<?php
require 'recipe.php';
if ($_SERVER['REQUEST_METHOD'] === 'GET') {
    return false;
}
$path = trim($_SERVER['REQUEST_URI'], '/');
error_log("asked for $path");
$in = json_decode(file_get_contents('php://input'), true) + ['uid' => $_COOKIE['uid'] ?? null];
$in = $path === 'hook' ? ['event' => $in] : $in;
$names = array_map(fn ($parameter) => $parameter->name, (new ReflectionFunction($path))->getParameters());
$answer = $path(...array_intersect_key($in, array_flip($names)));
header('Content-Type: application/json');
echo json_encode($answer instanceof Traversable ? iterator_to_array($answer, false) : $answer);
"""

# Its page; what a recipe leaves to the reader to draw is written down.
PAGE = """<!doctype html><title>recipe</title><link rel="icon" href="data:,">
<script type="importmap">{"imports": {"moongate-client": "/moongate.js"}}</script>
<script>
document.cookie = 'uid=' + new URLSearchParams(location.search).get('uid');
const drawn = [], times = [];
for (const name of ['show', 'notice', 'dot', 'badge', 'typing', 'roster']) {
  window[name] = (...what) => {
    drawn.push([name, ...what]);
    times.push(performance.now());
  };
}
</script>
<script type="module">
%s
Object.assign(window, { gate, post, %s });
</script>
"""


def recipes(document):
    """Of each section in order: its heading, and its blocks of code with their languages."""
    sections = re.split(r"^## (.*)\n", Path(ROOT, document).read_text(), flags=re.M)[1:]
    return [
        (heading, re.findall(r"^```(\w+)\n(.*?)^```$", text, re.S | re.M))
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
    ]


(_, HEAD), *RECIPES = recipes("docs/recipes.md")


def code(blocks, language):
    return "\n".join(text for of, text in blocks if of == language)


class Recipe(World):
    """One of them: its application, and whoever is there."""

    heading = None
    # What the page's script has and the test calls.
    calls = ""

    @classmethod
    def setUpClass(cls):
        cls.blocks = dict(RECIPES)[cls.heading]
        cls.script = code(cls.blocks, "js")
        cls.browser = Browser(cls) if cls.script else None

    def setUp(self):
        super().setUp()
        self.hook = free_port("127.0.0.1")
        self.nodes = [(self.clients, self.api), (free_port("127.0.0.1"), free_port("127.0.0.1"))]
        [settings] = re.findall(r"^(MOONGATE_.*) make cluster$", code(self.blocks, "sh"), re.M) or [""]
        settings = self.at_our_ports(settings.replace("MOONGATE_", ""))
        settings = dict(setting.split("=", 1) for setting in shlex.split(settings))
        self.start_application()
        for self.clients, self.api in self.nodes[::-1]:
            self.start_node(**settings)

    def at_our_ports(self, text, node=0):
        clients, api = self.nodes[node]
        ours = {"7272": clients, "7273": api, "7279": self.redis_port, "8000": self.hook}
        # In one pass: the one port may have the digits of another.
        return re.sub(r"\b(7272|7273|7279|8000)\b", lambda found: str(ours[found[0]]), text)

    def start_application(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        php = code(HEAD, "php") + code(self.blocks, "php")
        client = Path(ROOT, "clients/js/dist/moongate.js").read_text()
        files = {"recipe.php": self.at_our_ports(php), "application.php": APPLICATION, "moongate.js": client}
        for name, text in files.items():
            Path(self.directory, name).write_text(text)
        strict = ["-d", "error_reporting=E_ALL", "-d", "log_errors=1", "-d", "error_log="]
        self.php = ["php", *strict]
        server = [*self.php, "-S", f"127.0.0.1:{self.hook}", "-t", self.directory, Path(self.directory, "application.php")]
        self.application = Program(self, server)
        self.addCleanup(lambda: self.assertNotRegex(self.application.printed(), "PHP (Warning|Notice|Deprecated|Fatal)"))
        wait_for("the application", lambda: http(f"http://127.0.0.1:{self.hook}/")[0])

    def app(self, function, **arguments):
        """Has the application do something."""
        status, answer = http(f"http://127.0.0.1:{self.hook}/{function}", json.dumps(arguments).encode())
        self.assertEqual(status, 200, f"{function}: {answer}\n{self.application.printed()}")
        return json.loads(answer)

    def lines(self, client_id="7f0000010b54a3c1e07f"):
        """Runs the lines that are for a shell, one after the other; what each printed."""
        for line in code(self.blocks, "sh").splitlines():
            if line.startswith(("curl", "redis-cli")):
                line = self.at_our_ports(line.replace("7f0000010b54a3c1e07f", client_id))
                done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, timeout=DEADLINE)
                self.assertEqual((done.returncode, done.stderr), (0, ""), line)
                self.assertNotRegex(done.stdout, r"\bERR\b", line)
                wait_for(f"an idle queue after {line}", lambda: self.redis.xlen("mg:tasks") == 0)
                yield done.stdout.strip()

    def client(self, node=0):
        """One without a page."""
        here, self.clients = self.clients, self.nodes[node][0]
        try:
            return Client(self)
        finally:
            self.clients = here

    def visitor(self, uid, node=0, profile=None):
        return Visitor(self, uid, node, profile)

    def is_closed(self, client, code, reason):
        with self.assertRaises(ConnectionClosed) as closed:
            while True:
                client.socket.recv(DEADLINE)
        self.assertEqual((closed.exception.rcvd.code, closed.exception.rcvd.reason), (code, reason))

    def online(self, uid):
        return self.redis.smembers(f"mg:uid:{uid}:clients")


class Visitor(Page):
    """A user's tab."""

    def __init__(self, test, uid, node, profile):
        self.test = test
        self.profile = profile or test.browser.profile(test)
        script = test.at_our_ports(code(HEAD, "js") + test.script, node)
        Path(test.directory, f"{node}.html").write_text(PAGE % (script, test.calls))
        super().__init__(test.browser, self.profile, f"http://127.0.0.1:{test.hook}/{node}.html?uid={uid}")
        test.addCleanup(lambda: test.assertEqual(self.complaints(), []))

    def drawn(self, *names):
        return [what for what in self.eval("drawn") if what[0] in names]

    def draws(self, *what):
        """Waits until this is the last of its kind that was drawn."""
        last = f"drawn.filter(what => what[0] === {json.dumps(what[0])}).pop()"
        self.until(f"JSON.stringify({last}) === {json.dumps(json.dumps(what, separators=(',', ':')))}")

    def is_bound(self, uid):
        wait_for(f"{uid} to be bound", lambda: self.eval("gate.clientId") in self.test.online(uid))
        return self

    def is_lost(self):
        """Its connection ends as one that is lost."""
        before = self.eval("gate.clientId")
        self.test.ask("destroyClient", client_id=before)
        self.until(f"gate.clientId && gate.clientId !== {json.dumps(before)}")


class SingleLogin(Recipe):
    heading = "Single login"

    def test_who_logs_in_elsewhere_takes_the_place_and_the_page_that_had_it_stays_away(self):
        first = self.visitor(42).is_bound("42")
        second = self.visitor(42, node=1).is_bound("42")
        first.draws("notice", "You have logged in elsewhere.")
        self.assertEqual(first.eval("gate.state"), "closed")
        self.assertEqual(self.online("42"), {second.eval("gate.clientId")})
        # "Use it here."
        first.eval("gate.connect()")
        second.draws("notice", "You have logged in elsewhere.")
        first.is_bound("42")
        other = self.client()
        self.assertEqual(list(self.lines(other.id)), ['{"result":true}'])
        first.until("gate.state === 'closed'")
        self.assertEqual(self.online("42"), {other.id})


class UnreadMessages(Recipe):
    heading = "Unread messages"

    def send(self, text):
        return self.app("send", uid="7", to="42", text=text)

    def shows(self, page, *texts):
        """Waits for the last, and then there were exactly these."""
        page.until(f"drawn.filter(what => what[0] === 'show').length >= {len(texts)}")
        self.assertEqual([what[1]["text"] for what in page.drawn("show")], list(texts))

    def test_nobody_misses_anything_or_hears_it_twice(self):
        self.assertEqual([self.send("one"), self.send("two")], [0, 0])
        page = self.visitor(42)
        self.shows(page, "one", "two")
        self.assertEqual(self.send("three"), 1)
        self.shows(page, "one", "two", "three")

        # As in a tunnel: it counts as there, and is not.
        client = page.eval("gate.clientId")
        self.ask("unbindUid", client_id=client)
        self.assertEqual(self.send("four"), 0)
        page.is_lost()
        self.shows(page, "one", "two", "three", "four")

        # As in a gap of the node: one is not pushed; one comes twice, one too soon.
        self.redis.rpush("app:inbox:42", json.dumps({"from": "7", "text": "five"}))
        self.assertEqual(self.send("six"), 1)
        self.shows(page, "one", "two", "three", "four", "five", "six")
        again = {"type": "message", "n": 6, "from": "7", "text": "six"}
        self.assertEqual(self.redis.publish("mg:uid:42", json.dumps(again)), 1)
        self.assertEqual(self.send("seven"), 1)
        self.shows(page, "one", "two", "three", "four", "five", "six", "seven")

        # Read on one device, it is read on the other; and never unread again.
        other = self.visitor(42, node=1)
        self.shows(other, "one", "two", "three", "four", "five", "six", "seven")
        for n in (6, 4):
            self.app("seen", uid="42", n=n)
        other.draws("badge", 4)
        self.shows(self.visitor(42), "seven")


class PresenceDots(Recipe):
    heading = "Presence dots"

    def setUp(self):
        super().setUp()
        for one, another in (("ann", "bob"), ("bob", "ann"), ("ann", "cid"), ("cid", "ann")):
            self.redis.sadd(f"app:friends:{one}", another)
        Program(self, [*self.php, "-r", f"require '{self.directory}/recipe.php'; watch();"])

    def dots(self, page, uid):
        return [online for _, who, online in page.drawn("dot") if who == uid]

    def has_heard(self, entry):
        wait_for("all events to be heard", lambda: self.redis.get("app:presence:at") == entry)

    def last_event(self):
        return self.redis.xrevrange("mg:events", count=1)[0]

    def test_friends_see_who_comes_and_goes_a_reload_does_not_flicker_and_strangers_see_nothing(self):
        ann, eve = self.visitor("ann").is_bound("ann"), self.visitor("eve", node=1).is_bound("eve")
        ann.until("drawn.length === 2")
        self.assertEqual(sorted(ann.drawn("dot")), [["dot", "bob", False], ["dot", "cid", False]])
        bob = self.visitor("bob", node=1).is_bound("bob")
        ann.draws("dot", "bob", True)
        bob.draws("dot", "ann", True)
        early = self.last_event()
        self.assertEqual((early[1]["event"], early[1]["uid"]), ("bound", "bob"))

        # He reloads: he is gone, and there again. A second tab comes and goes.
        again, tab = self.client(), self.client(1)
        bob.close()
        wait_for("bob to be away", lambda: self.redis.zscore("app:presence:left", "bob"))
        for client in (again, tab):
            self.ask("bindUid", client_id=client.id, uid="bob")
        tab.socket.close()
        wait_for("the question whether he is away", lambda: not self.redis.zcard("app:presence:left"))
        wait_for("the tab to be gone", lambda: self.online("bob") == {again.id})
        self.has_heard(self.last_event()[0])
        self.redis.publish("mg:uid:ann", json.dumps({"type": "presence", "uid": "end", "online": True}))
        ann.draws("dot", "end", True)
        self.assertNotIn(False, self.dots(ann, "bob")[1:])

        again.socket.close()
        ann.draws("dot", "bob", False)
        # What overtakes, as between two masters of a Cluster.
        self.has_heard(self.redis.xadd("mg:events", early[1]))
        cid = self.visitor("cid").is_bound("cid")
        ann.draws("dot", "cid", True)
        cid.draws("dot", "ann", True)
        self.assertIs(self.dots(ann, "bob")[-1], False)
        self.assertEqual(eve.drawn("dot"), [])


class TypingIndicators(Recipe):
    heading = "Typing indicators"
    calls = "onInput"

    def typist(self, uid, node=0, profile=None):
        page = self.visitor(uid, node, profile)
        page.until("gate.clientId")
        self.ask("bindUid", client_id=page.eval("gate.clientId"), uid=uid)
        self.ask("joinGroup", uid=uid, group="room-1")
        return page

    def test_others_see_it_once_in_three_seconds_and_it_ends_by_itself_or_with_what_is_said(self):
        ann, bob = self.typist("ann"), self.typist("bob", node=1)
        tab = self.typist("ann", 1, ann.profile)
        ann.eval("for (const _ of 'hello') onInput()")
        bob.draws("typing", "ann", True)
        bob.draws("typing", "ann", False)
        # Whoever goes on typing is not seen to stop between two requests.
        self.assertGreater(bob.eval("times[1] - times[0]"), 4000)
        self.assertEqual(self.application.printed().count("asked for typing"), 1)
        ann.eval("onInput()")
        bob.draws("typing", "ann", True)
        self.redis.publish("mg:group:room-1", json.dumps({"type": "say", "uid": "ann", "text": "hello"}))
        bob.draws("typing", "ann", False)
        # By what was said, and by nothing else.
        self.assertEqual(bob.drawn("typing"), [["typing", "ann", True], ["typing", "ann", False]] * 2)
        for page in (ann, tab):
            page.draws("typing", "ann", False)
            self.assertNotIn(["typing", "ann", True], page.drawn("typing"))


class KickingAndBanning(Recipe):
    heading = "Kicking and banning"

    def test_who_is_kicked_may_come_again_and_who_is_banned_may_not(self):
        page = self.visitor(42, node=1).is_bound("42")
        self.assertEqual(list(self.lines()), ['{"result":{"nodes":1}}'])
        page.draws("notice", "please be polite")
        self.assertEqual(page.eval("gate.state"), "closed")
        page.eval("gate.connect()")
        page.is_bound("42")

        self.app("ban", uid="42", reason="you were told")
        page.draws("notice", "you were told")
        page.eval("gate.connect()")
        page.draws("notice", "banned")
        self.assertEqual(page.eval("gate.state"), "closed")
        self.assertEqual(self.online("42"), set())

        other = self.client()
        self.redis.sadd("app:banned", "127.0.0.1")
        with self.assertRaises(InvalidStatus) as refused:
            self.client()
        self.assertEqual(refused.exception.response.status_code, 403)
        self.assertIsNone(self.app("arrive", client_id=other.id, uid="43"))


class RoomsWithRosters(Recipe):
    heading = "Rooms with rosters"

    def sees(self, page, *uids):
        last = "drawn.filter(what => what[0] === 'roster').pop()?.[1].map(user => user.uid).sort()"
        page.until(f"JSON.stringify({last}) === {json.dumps(json.dumps(uids, separators=(',', ':')))}")

    def test_all_see_the_same_list_whoever_comes_leaves_or_comes_back(self):
        ann = self.visitor("ann")
        self.sees(ann, "ann")
        bob = self.visitor("bob", node=1)
        for page in (ann, bob):
            self.sees(page, "ann", "bob")
        tab = self.visitor("bob")
        for page in (ann, bob, tab):
            self.sees(page, "ann", "bob", "bob")
        tab.close()
        self.sees(ann, "ann", "bob")
        bob.is_lost()
        for page in (ann, bob):
            self.sees(page, "ann", "bob")
        # An announcement that was slower than the leaving.
        user = next(user for user in bob.drawn("roster")[-1][1] if user["uid"] == "ann")
        ann.close()
        self.sees(bob, "bob")
        self.redis.publish("mg:group:room-1", json.dumps({"type": "came"} | user))
        cid = self.visitor("cid")
        for page in (bob, cid):
            self.sees(page, "bob", "cid")


class ShardedRooms(Recipe):
    heading = "Sharded rooms"

    def test_talk_stays_in_a_shard_and_what_is_announced_reaches_everybody_once(self):
        shard = lambda uid: zlib.crc32(uid.encode()) % 128
        uids = [f"u{number}" for number in range(6)]
        # One more who shares a shard with the first, and a second tab of the first.
        uids.append(next(uid for uid in map(str, range(10000)) if shard(uid) == shard("u0")))
        uids.append("u0")
        members = [(uid, self.client(place % 2)) for place, uid in enumerate(uids)]
        for uid, client in members:
            self.app("enter", client_id=client.id, uid=uid, room="1")
        self.assertEqual(self.app("audience", room="1"), len(uids))
        self.assertEqual(sorted(self.app("everyone", room="1")), sorted(set(uids)))
        self.app("say", uid="u0", room="1", text="hi")
        neighbours = [client for uid, client in members if shard(uid) == shard("u0")]
        self.assertEqual(len(neighbours), 3)
        for client in neighbours:
            self.assertEqual(client.hears(), {"type": "say", "uid": "u0", "text": "hi"})
        for text in ("first", "second"):
            self.app("announce", room="1", text=text)
            for _, client in members:
                self.assertEqual(client.hears(), {"type": "announcement", "text": text})


class Later(Recipe):
    heading = "Later, and on a schedule"

    def test_what_is_due_comes_in_its_time_once_and_only_if_it_is_still_wanted(self):
        client = self.client()
        self.ask("bindUid", client_id=client.id, uid=42)
        *_, morning = self.lines()
        due = json.loads(morning)["result"]["next_at"] / 1000
        due = datetime.datetime.fromtimestamp(due, ZoneInfo("Asia/Shanghai"))
        self.assertEqual((due.hour, due.minute, due.weekday() < 5), (9, 0, True))
        self.assertIsNone(self.ask("getTask", id="night")["result"])
        self.assertEqual(client.hears(), "tea is ready")

        # In a zone of its own, half an hour and some seconds from now.
        begins = datetime.datetime.now(ZoneInfo("Asia/Shanghai")) + datetime.timedelta(minutes=30, seconds=2)
        remind = {"uid": "42", "zone": "Asia/Shanghai"}
        when, tomorrow = (f"{at:%F %T}" for at in (begins, begins + datetime.timedelta(days=1)))
        # One was to be tomorrow and is moved; of the other the form is sent twice.
        moved = self.app("remind", meeting=18, version=0, when=tomorrow, **remind)
        wait_for("it to be known", lambda: self.ask("getTask", id=moved)["result"])
        self.app("forget", id=moved)
        wait_for("it to be forgotten", lambda: not self.ask("getTask", id=moved)["result"])
        self.app("remind", meeting=18, version=1, when=when, **remind)
        for _ in range(2):
            self.app("remind", meeting=17, version=0, when=when, **remind)
        heard = [client.hears() for _ in range(2)]
        self.assertEqual(sorted(said["meeting"] for said in heard), [17, 18])

        self.app("ordered", uid="42", order=5)
        task = wait_for("the order", lambda: self.ask("getTask", id="order-5-unpaid")["result"])
        self.assertAlmostEqual(task["next_at"] / 1000, time.time() + 15 * 60, delta=DEADLINE)
        # A quarter of an hour later; and before it, one that was paid.
        self.redis.sadd("app:paid", 6)
        for order in (6, 5):
            webhook = json.dumps(task["task"]["webhook"] | {"unpaid": order})
            reply = f"mg:reply:{order}"
            self.redis.xadd("mg:tasks", {"webhook": webhook, "reply_to": reply})
            self.assertTrue(self.redis.blpop(reply, DEADLINE))
        self.assertEqual(client.hears(), {"type": "unpaid", "order": 5})


class PhoneAndWeb(Recipe):
    heading = "Phone and web"

    def device(self, kind, node):
        client = self.client(node)
        self.app("arrive", client_id=client.id, uid="42", device=kind)
        return client

    def test_all_devices_are_reached_or_the_phone_alone_and_only_a_phone_replaces_a_phone(self):
        old, *tabs = self.device("phone", 0), self.device("web", 0), self.device("web", 1)
        phone = self.device("phone", 1)
        self.is_closed(old, 4001, "replaced")
        _, called, kicked, online = self.lines()
        for client in (phone, *tabs):
            self.assertEqual(client.hears(), "you have mail")
        self.assertEqual((called, kicked), ("1", '{"result":{"nodes":1}}'))
        self.assertEqual(phone.hears(), "you are being called")
        self.is_closed(phone, 4001, "replaced")
        self.assertEqual(json.loads(online), {"result": {"42/phone": False, "42/web": True}})
        self.redis.publish("mg:group:user-42", "end")
        for client in tabs:
            self.assertEqual(client.hears(), "end")


class ManyAtOnce(Recipe):
    heading = "Many at once"

    def test_each_who_is_meant_hears_it_once_and_who_is_not_there_is_named(self):
        ann, bob, cid = self.client(0), self.client(1), self.client(1)
        for client, uid in ((ann, 42), (bob, 43)):
            self.ask("bindUid", client_id=client.id, uid=uid)
        for client in (ann, bob):
            self.ask("joinGroup", client_id=client.id, group=["room-1", "room-2"])
        to_uids, *_ = self.lines(bob.id)
        self.assertEqual(json.loads(to_uids)["result"]["offline"], ["eve"])
        nobody = [f"n{number}" for number in range(10000)]
        offline = self.app("notify", uids=["42", *nobody, "43"], message={"type": "sale"})
        self.assertEqual(set(offline), set(nobody))
        self.redis.publish("mg:all", "end")
        for client, texts in (
            (ann, ["the shop opens at nine", "closing soon", {"type": "sale"}]),
            (bob, ["the shop opens at nine", "please reload", {"type": "sale"}]),
            (cid, ["please reload"]),
        ):
            heard = [client.hears()]
            while heard[-1] != "end":
                heard.append(client.hears())
            self.assertEqual(heard[:-1], texts)


class LongRequest(Recipe):
    heading = "A request that takes long"
    calls = "report"

    def test_the_result_comes_by_push_and_also_to_a_page_that_was_away(self):
        page = self.visitor(42, node=1).is_bound("42")
        self.assertEqual(page.eval("report()")["rows"], 1000)

        self.ask("unbindUid", client_id=page.eval("gate.clientId"))
        page.eval("report().then(show); 0")
        wait_for("the result", lambda: len(self.redis.keys("app:report:42:*")) == 2)
        page.eval("gate.on('message', data => { if (data === 'end') window.ended = true; }); 0")
        self.redis.publish("mg:all", "end")
        page.until("window.ended")
        self.assertEqual(page.drawn("show"), [])
        page.is_lost()
        page.until("drawn.length === 1")
        self.assertEqual(page.drawn("show")[0][1]["rows"], 1000)

        # Asked for twice, it is done once.
        for _ in range(2):
            self.app("report", uid="42", job="mine")
        wait_for("the result", lambda: self.app("ready", uid="42", job="mine"))
        wait_for("an idle queue", lambda: self.redis.xlen("mg:tasks") == 0)
        self.assertEqual(self.application.printed().count("asked for hook"), 3)


class Documents(unittest.TestCase):
    def test_each_recipe_is_tried(self):
        self.assertEqual([heading for heading, _ in RECIPES], [recipe.heading for recipe in Recipe.__subclasses__()])

    def test_both_languages_have_the_same_code_but_for_its_comments(self):
        comments = {"php": r"/\*\*.*?\*/|(?<![^\s])//.*?$", "js": r"(?<![^\s])//.*?$", "sh": r"\s#.*?$"}

        def bare(blocks):
            without = [(of, re.sub(comments[of], "", text, flags=re.S | re.M)) for of, text in blocks]
            return [(of, [line.rstrip() for line in text.splitlines()]) for of, text in without]

        english, chinese = recipes("docs/recipes.md"), recipes("docs/recipes.zh-CN.md")
        self.assertEqual(len(english), len(chinese))
        for (heading, blocks), (_, others) in zip(english, chinese, strict=True):
            with self.subTest(heading):
                self.assertEqual(bare(blocks), bare(others))


if __name__ == "__main__":
    unittest.main(verbosity=2)
