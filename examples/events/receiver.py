"""Hears what clients do, by webhook: python receiver.py"""
import hashlib, hmac, json, os, re, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ.get("MOONGATE_WEBHOOK_SECRET", "secret").encode()


def answer(event):
    """Status and commands."""
    say = lambda text: {"op": "sendToClient", "client_id": event["client_id"], "message": text}
    if event["event"] == "connect":
        name = event["query"].get("name")  # a real application looks at a cookie or a token here
        bind = {"op": "bindUid", "client_id": event["client_id"], "uid": name}
        return (200, [bind, say(f"welcome, {name}")]) if name else (403, [])
    if event["event"] == "message" and "data" in event:
        return 200, [say(f"you said: {event['data']}")]
    print(event["event"], json.dumps(event.get("payload", event.get("uid")), ensure_ascii=False), flush=True)
    return 200, []


class Receiver(BaseHTTPRequestHandler):
    protocol_version, log_message = "HTTP/1.1", lambda *_: None  # connections stay open, and the log short

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        at, signature = re.fullmatch(r"(?:t=(\d+),v1=(\w+))?.*", self.headers["Moongate-Signature"] or "", re.A).groups("0")
        signed = hmac.compare_digest(hmac.new(SECRET, f"{at}.".encode() + body, hashlib.sha256).hexdigest(), signature)
        status, commands = answer(json.loads(body)) if signed and abs(time.time() - int(at)) <= 300 else (400, [])
        out = json.dumps({"commands": commands}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Receiver).serve_forever()
