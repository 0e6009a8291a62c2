"""A chat room, run by a worker that reads what clients do from a Redis stream: what Events.php is to a BusinessWorker.

    python worker.py          the one worker
    python worker.py 0/2      the first of two, each with its share of the clients; 1/2 is the other

Clients say, in JSON:

    {"type": "login", "name": "Ann", "room": "1"}
    {"type": "say", "text": "hi all"}
    {"type": "typing"}
    {"type": "private", "to": "Bob", "text": "psst"}
"""

import json
import os
import signal
import sys
import threading
import traceback
import uuid
import zlib

import redis

share = sys.argv[1] if len(sys.argv) > 1 else "0/1"
mine, of = map(int, share.split("/"))
# One group for each share: it remembers how far its worker has come, and what it has in hand.
GROUP, NAME = f"chat-{share}", os.environ.get("NAME", "worker")
# What another consumer of this group has left for so long is taken over, ms.
LEFT = int(os.environ.get("LEFT", "60000"))
PREFIX = os.environ.get("MOONGATE_PREFIX", "mg")
EVENTS = f"{PREFIX}:events"

r = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:7279"), decode_responses=True, protocol=2)
stopping = threading.Event()


def text(kind, **fields):
    return json.dumps({"type": kind, **fields}, ensure_ascii=False)


def command(op, **fields):
    """At most once, and without an answer."""
    r.publish(f"{PREFIX}:cmd", json.dumps({"op": op, **fields}))


def done(task_id, *commands):
    """At least once, and in force when this returns. Said again with the same id within a day, it is not done again."""
    reply_to = f"{PREFIX}:reply:{uuid.uuid4()}"
    batch = json.dumps({"op": "batch", "commands": commands})
    r.xadd(f"{PREFIX}:tasks", {"command": batch, "id": task_id, "reply_to": reply_to})
    answer = r.blpop(reply_to, 3)
    if not answer:
        raise redis.TimeoutError("no node has answered")
    return json.loads(answer[1])["results"]


def names_in(room):
    """Of everybody in the room who has one, as it stands in Redis."""
    members = r.smembers(f"{PREFIX}:group:{room}:clients")
    with r.pipeline(transaction=False) as pipe:
        for member in members:
            pipe.hget(f"{PREFIX}:client:{member}", "uid")
        return sorted({name for name in pipe.execute() if name})


def on_connect(event):
    # The client knows its id by now: Moongate's INIT_MESSAGE has told it.
    r.publish(f"{PREFIX}:client:{event['client_id']}", text("news", text="log in, please"))


def on_message(event):
    client, me, session = event["client_id"], event["uid"], json.loads(event["session"])
    try:
        said = json.loads(event.get("data", ""))
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}

    def get(key, most=64):
        """What is no text counts as not said."""
        value = said.get(key)
        return value if isinstance(value, str) and len(value.encode()) <= most else ""

    kind, name, room, to, words = get("type"), get("name"), get("room"), get("to"), get("text", 4096)
    if kind == "login" and not me and name and room:
        # Whoever says a name is believed. A real application asks for a token here.
        results = done(
            event["id"],
            {"op": "setSession", "client_id": client, "session": {"name": name, "room": room}},
            {"op": "bindUid", "client_id": client, "uid": name},
            {"op": "joinGroup", "client_id": client, "group": room},
        )
        if not any("error" in result for result in results):  # it may have left
            r.publish(f"{PREFIX}:group:{room}", text("joined", name=name, online=names_in(room)))
    elif kind == "say" and me and words:
        r.publish(f"{PREFIX}:group:{session['room']}", text("said", name=me, text=words))
    elif kind == "typing" and me:
        command("sendToGroup", group=session["room"], message=text("typing", name=me), exclude=[client])
    elif kind == "private" and me and words and to not in ("", me):
        # PUBLISH says how many nodes have somebody who is named so.
        if r.publish(f"{PREFIX}:uid:{to}", text("private", name=me, to=to, text=words)):
            r.publish(f"{PREFIX}:uid:{me}", text("private", name=me, to=to, text=words))
        else:
            r.publish(f"{PREFIX}:client:{client}", text("offline", name=to))


def on_close(event):
    # It is in no group any more; the session is what it was.
    session = json.loads(event["session"])
    if "room" in session:
        r.publish(f"{PREFIX}:group:{session['room']}", text("left", name=session["name"]))


HANDLERS = {"connect": on_connect, "message": on_message, "close": on_close}


def handle_all(entries):
    for entry, event in entries:
        handle(entry, event)


def handle(entry, event):
    """One entry, to the end: where this process ends before its XACK, the entry comes again."""
    is_mine = event and zlib.crc32(event["client_id"].encode()) % of == mine
    handler = HANDLERS.get(event["event"]) if is_mine else None
    seen = f"chat:seen:{event['id']}" if handler else None
    if handler and not r.exists(seen):
        try:
            handler(event)
        except redis.RedisError:
            raise  # not known to be done: once more
        except Exception:
            traceback.print_exc()  # a mistake of ours does not hold up the others
    with r.pipeline() as pipe:
        if seen:
            # An event may be told twice, with the same id.
            pipe.set(seen, "", ex=3600)
        pipe.xack(EVENTS, GROUP, entry)
        pipe.execute()


def work():
    try:
        # From now on. "0" in place of "$": all that stands in the stream.
        r.xgroup_create(EVENTS, GROUP, id="$", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
    # What this name had in hand comes before all that is new.
    entries = True
    while entries and not stopping.is_set():
        [[_, entries]] = r.xreadgroup(GROUP, NAME, {EVENTS: "0"}, count=100)
        handle_all(entries)
    print(f"{GROUP} {NAME}: ready", flush=True)
    while not stopping.is_set():
        # What a worker of another name has left, one that has crashed.
        handle_all(r.xautoclaim(EVENTS, GROUP, NAME, LEFT, count=100)[1])
        for _, entries in r.xreadgroup(GROUP, NAME, {EVENTS: ">"}, count=100, block=1000):
            handle_all(entries)


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stopping.set())
while not stopping.is_set():
    try:
        work()
    except redis.RedisError as error:
        print(f"{GROUP} {NAME}: {error}; again in a second", file=sys.stderr, flush=True)
        stopping.wait(1)
