"""Queues one of each kind: python enqueue.py <client_id>"""

import json
import os
import sys
import uuid

import redis

client = sys.argv[1]
# No answer takes as long as the wait for a reply below.
r = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:7279"), decode_responses=True, socket_timeout=20)


def add(command, **more):
    """Queues a command; the fields beside it are those of the table in docs/tasks.md."""
    return r.xadd("mg:tasks", {"command": json.dumps(command), **more})


def ask(command, **more):
    """Queues a command and waits for what HTTP would answer."""
    reply_to = f"mg:reply:{uuid.uuid4()}"
    add(command, reply_to=reply_to, **more)
    answer = r.blpop(reply_to, 10)
    if answer is None:
        raise TimeoutError("no node has answered; the task stays in the queue")
    return json.loads(answer[1])


def send(message):
    return {"op": "sendToUid", "uid": 42, "message": message}


# Bind, then push: two commands in one batch, in this order. When it is answered, both are done.
bind = {"op": "bindUid", "client_id": client, "uid": 42}
print(json.dumps(ask({"op": "batch", "commands": [bind, send("bound")]})))

# Now, in two seconds, and at a time (unix ms).
add(send("now"))
add(send("later"), delay=2000)
seconds, micros = r.time()
add(send("on time"), at=seconds * 1000 + micros // 1000 + 1000)

# Twice with one id: once.
for _ in range(2):
    add(send("once"), id="order-17-paid-" + client)

# Every second, until it is cancelled: in four seconds, by a task.
add(send("tick"), id="tick", cron="* * * * * *", tz="Europe/Berlin")
add({"op": "cancelTask", "id": "tick"}, delay=4000)

# A task that waits is cancelled by its id.
add(send("never"), id="never-" + client, delay=1500)
ask({"op": "cancelTask", "id": "never-" + client})

# Work for the application itself: POSTed to WEBHOOK_URL as event `task`, at most three times.
r.xadd("mg:tasks", {"webhook": json.dumps({"mail": "welcome", "to": 42}), "max_attempts": 3})
