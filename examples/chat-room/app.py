"""The application of the chat room; app.php is the same in PHP. Both run behind examples/run.

It knows its users by a cookie, and never believes a uid from a page. Changes and questions go to a node of Moongate
by HTTP, messages through Redis.
"""
import hashlib, hmac, html, json, os, re, secrets, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from redis import Redis, RedisError

SECRET = os.environ["APP_SECRET"].encode()
NODES = os.environ.get("NODES", "ws://127.0.0.1:7272/ ws://127.0.0.1:7282/")  # where pages connect
APIS = os.environ.get("APIS", "http://127.0.0.1:7273 http://127.0.0.1:7283")  # where this program asks
ROOMS = ["1", "2", "3"]
REDIS = Redis(port=int(os.environ.get("REDIS_PORT", "7279")), socket_timeout=5)


class Refused(Exception):
    """What is not done, with the HTTP status for its code."""


# ---- Moongate


def batch(commands):
    """Has a node carry out commands, in order. Where one cannot, the next is asked: to do these things twice harms nobody."""
    header = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ.get("MOONGATE_API_TOKEN", "")}
    post = json.dumps({"commands": commands}).encode()
    for api in APIS.split(" "):
        try:
            answer = urllib.request.urlopen(urllib.request.Request(api + "/api/batch", post, header), timeout=5)
            results = json.load(answer)["results"]
        except OSError:
            results = [{"error": {"code": "no answer", "status": 503}}]
        error = next((item["error"] for item in results if "error" in item), None)
        if not error:
            return [item["result"] for item in results]
        if error["status"] < 500:
            break
    raise Refused(error["code"], error["status"])


def publish(target, message):
    """Says something to a group or a uid; on how many nodes somebody hears it."""
    return REDIS.publish("mg:" + target, json.dumps(message, ensure_ascii=False))


# ---- Who asks, and for what


def sign(text):
    return hmac.new(SECRET, text.encode(), hashlib.sha256).hexdigest()


def user(request):
    """The user whom the cookie names, if it was made here."""
    found = re.search(r"\bchat=(\w+)\.(\w+)", request.headers.get("Cookie", ""), re.A)
    if not found or not hmac.compare_digest(sign("user " + found[1]), found[2]):
        raise Refused("log in, please", 401)
    return json.loads(bytes.fromhex(found[1]))


def set_cookie(request, value, more=""):
    request.more_headers["Set-Cookie"] = f"chat={value}; Path=/; HttpOnly; SameSite=Strict{more}"


def text(given, name, most):
    """A text of the request, of at most so many bytes."""
    found = given[name].strip() if isinstance(given.get(name), str) else ""
    if not 0 < len(found.encode()) <= most:
        raise Refused(name, 400)
    return found


def room(given):
    """The group of the room that the page names. A real application asks here whether this user may enter it."""
    if given.get("room_id") not in ROOMS:
        raise Refused("room_id", 403)
    return "room-" + given["room_id"]


# ---- What pages ask


def login(request, given):
    """A name is believed here; a real application asks for a password, and has long had a cookie of its own."""
    me = {"uid": secrets.token_hex(8), "uname": text(given, "uname", 60), "avatar": text(given, "avatar", 32)}
    payload = json.dumps(me).encode().hex()
    set_cookie(request, payload + "." + sign("user " + payload))
    return {"ok": True}


def bind(request, given):
    """A page has connected: its client gets a uid, a room and a session, and the room hears of it."""
    me, group, client = user(request), room(given), text(given, "client_id", 20)
    # What others call this client. They must not know its id, or they could bind it themselves.
    tab = sign("tab " + client)[:16]
    session = me | {"room_id": given["room_id"], "tab": tab}
    results = batch([
        {"op": "bindUid", "client_id": client, "uid": me["uid"]},
        {"op": "joinGroup", "client_id": client, "group": group},
        {"op": "setSession", "client_id": client, "session": session},
        {"op": "getClientSessionsByGroup", "group": group},
    ])
    # Only now: a page that is gone already was refused above, and nobody would hear that it left.
    publish("group:" + group, {"type": "login"} | session)
    return {"me": session, "users": list(results[3].values())}


def say(request, given):
    """To the room, or to one user."""
    me, group = user(request), room(given)
    message = {"type": "say", "text": text(given, "text", 3000)} | me
    if given.get("to") is None:
        publish("group:" + group, message)
        return {"ok": True}
    to = text(given, "to", 64)
    message["to"] = to
    if not publish("uid:" + to, message):
        raise Refused("offline", 404)  # the moment to store it, or to send a mail
    # The echo: it stands on all tabs of the one who said it.
    if to != me["uid"]:
        publish("uid:" + me["uid"], message)
    return {"ok": True}


def logout(request, given):
    """A cookie that is gone ends no socket: they are closed, on all tabs."""
    me = user(request)
    set_cookie(request, "", "; Max-Age=0")
    batch([{"op": "closeUid", "uid": me["uid"]}])
    return {"ok": True}


# ---- HTTP


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    routes = {"/login": login, "/bind": bind, "/say": say, "/logout": logout}

    def do_GET(self):
        here, path = Path(__file__).parent, self.path.partition("?")[0]
        if path == "/":
            self.answer(200, "text/html", (here / "index.html").read_text().replace("__NODES__", html.escape(NODES)))
        elif path == "/moongate.js":
            self.answer(200, "text/javascript", (here / "../../clients/js/dist/moongate.classic.js").read_text())
        elif path == "/style.css":
            self.answer(200, "text/css", (here / "../style.css").read_text())
        else:
            self.answer(404, "text/plain", "no such page")

    def do_POST(self):
        self.more_headers = {}
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            route = self.routes.get(self.path.partition("?")[0])
            if not route:
                raise Refused("no such page", 404)
            given = json.loads(body)
            if not isinstance(given, dict):
                raise Refused("this is no JSON", 400)
            status, answer = 200, route(self, given)
        except Refused as refused:
            message, status = refused.args
            answer = {"error": message}
        except ValueError:
            status, answer = 400, {"error": "this is no JSON"}
        except RedisError:
            status, answer = 503, {"error": "Redis does not answer"}
        self.answer(status, "application/json", json.dumps(answer))

    def answer(self, status, kind, body):
        body = body.encode()
        self.send_response(status)
        headers = {"Content-Type": kind + "; charset=utf-8", "Content-Length": str(len(body))}
        for name, value in (headers | getattr(self, "more_headers", {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "7280"))), Handler).serve_forever()
