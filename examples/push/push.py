"""Bind, push, queue, and see who is online: python push.py <client_id>"""

import json
import os
import sys
import uuid

import redis

client = sys.argv[1]
url = os.environ.get("REDIS_URL", "redis://127.0.0.1:7279")
# No answer takes as long as the wait for a reply below.
r = redis.Redis.from_url(url, decode_responses=True, socket_timeout=20)

# Bind with certainty: by a queued task, and wait for its answer. After a bindUid that is only published, on mg:cmd,
# the next PUBLISH, on another channel, may come first, and finds nobody.
bind = {"op": "batch", "commands": [
    {"op": "bindUid", "client_id": client, "uid": 42},
    {"op": "joinGroup", "client_id": client, "group": "room-1"},
    {"op": "setSession", "client_id": client, "session": {"name": "Ann"}},
]}  # fmt: skip
reply_to = f"mg:reply:{uuid.uuid4()}"
r.xadd("mg:tasks", {"command": json.dumps(bind), "reply_to": reply_to})
reply = r.blpop(reply_to, 10)
if reply is None:
    sys.exit("no node has answered; the task stays in the queue")
if not all(result.get("result") for result in json.loads(reply[1]).get("results", [{}])):
    sys.exit("not bound: " + reply[1])
print("bound")

# To the uid: on how many nodes it is. 0 is nobody: store the message, or send a mail.
print("nodes", r.publish("mg:uid:42", json.dumps({"type": "mail", "unread": 3})))

# To the group, but not to the uid that is typing. To all of it is a plain PUBLISH on mg:group:room-1.
typing = {"op": "sendToGroup", "group": "room-1", "message": {"type": "typing", "uid": 42}, "exclude_uid": [42]}
r.publish("mg:cmd", json.dumps(typing))

# In two seconds, whatever has become of this program by then.
later = {"op": "sendToUid", "uid": 42, "message": "later"}
r.xadd("mg:tasks", {"command": json.dumps(later), "delay": 2000})

# Who is online: plain sets and hashes, to read and never to write.
print("online", *r.smembers("mg:uid:42:clients"))
print("room-1", *r.smembers("mg:group:room-1:clients"))
print("session", r.hget(f"mg:client:{client}", "session"))
