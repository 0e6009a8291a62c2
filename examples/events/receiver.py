"""Hears what clients do, by webhook: python receiver.py"""

import hashlib
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ.get("MOONGATE_WEBHOOK_SECRET", "secret").encode()


def is_signed(body, header):
    fields = dict(field.split("=", 1) for field in header.split(",") if "=" in field)
    at, signature = fields.get("t", ""), fields.get("v1", "")
    expected = hmac.new(SECRET, at.encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signature.encode()) and abs(time.time() - int(at)) <= 300


def answer(event):
    """Status and commands."""
    client, kind = event.get("client_id"), event["event"]
    if kind == "connect":
        name = event["query"].get("name")
        if not name:  # a real application looks at a cookie or a token here
            return 403, []
        return 200, [
            {"op": "bindUid", "client_id": client, "uid": name},
            {"op": "sendToClient", "client_id": client, "message": f"welcome, {name}"},
        ]
    if kind == "message" and "data" in event:
        return 200, [{"op": "sendToClient", "client_id": client, "message": f"you said: {event['data']}"}]
    print(kind, json.dumps(event.get("payload", event.get("uid")), ensure_ascii=False), flush=True)
    return 200, []


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signed = is_signed(body, self.headers.get("Moongate-Signature", ""))
        status, commands = answer(json.loads(body)) if signed else (400, [])
        out = json.dumps({"commands": commands}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Receiver).serve_forever()
