"""Tells the gateway events that are signed by the senders' own libraries, and checks its callbacks by theirs.

Usage: webhook_senders.py BASE_URL CALLBACK_PORT      (BASE_URL such as http://127.0.0.1:8642)

The gateway has the webhooks `slack` and `standard`, whose secrets are below, and calls back at CALLBACK_PORT, signed with
the secret of `standard`. Its agent says again what it is told. The first failure ends the run.
"""

import http.client
import http.server
import json
import queue
import sys
import threading
import time
import urllib.parse
from datetime import datetime, timedelta, timezone

from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook

if len(sys.argv) != 3:
    sys.exit("usage: webhook_senders.py BASE_URL CALLBACK_PORT")
BASE = urllib.parse.urlsplit(sys.argv[1])
SLACK_SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

CALLS = queue.Queue()
PASSED = 0


class Callback(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        CALLS.put((dict(self.headers), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def tell(hook, body, headers):
    connection = http.client.HTTPConnection(BASE.hostname, BASE.port, timeout=20)
    connection.request("POST", f"/webhooks/{hook}", body, {"content-type": "application/json", **headers})
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told


def equal(got, want, what):
    global PASSED
    if got != want:
        sys.exit(f"{what}: got {got!r}, want {want!r}")
    PASSED += 1


def called_back(text, session):
    """The next callback, which the library must find rightly signed."""
    headers, body = CALLS.get(timeout=20)
    reply = Webhook(STANDARD_SECRET).verify(body, {name.lower(): value for name, value in headers.items()})
    equal((reply["text"], reply["session"]), (text, session), "the callback")
    equal(headers.get("idempotency-key"), headers.get("webhook-id"), "the callback's ids")


def slack():
    def signed(body, at=None):
        at = str(int(at or time.time()))
        signature = SignatureVerifier(SLACK_SECRET).generate_signature(timestamp=at, body=body)
        return {"X-Slack-Signature": signature, "X-Slack-Request-Timestamp": at}

    challenge = json.dumps({"type": "url_verification", "challenge": "3eZbrw1aB"})
    equal(tell("slack", challenge, signed(challenge)), (200, {"challenge": "3eZbrw1aB"}), "the handshake")
    event = {"type": "event_callback", "event_id": "Ev08MFMKH6", "event": {"type": "app_mention", "text": "Grüße 🦀"}}
    body = json.dumps(event, ensure_ascii=False)
    status, told = tell("slack", body.encode(), signed(body))
    equal((status, told["status"]), (202, "accepted"), "an event")
    called_back("Grüße 🦀", "webhook:slack:Ev08MFMKH6")
    equal(tell("slack", body.encode(), signed(body))[1]["turn"], told["turn"], "the same event again")
    other = json.dumps({**event, "event_id": "Ev2", "event": {"type": "reaction_added"}})
    equal(tell("slack", other, signed(other))[1]["status"], "ignored", "an event that is not wanted")
    equal(tell("slack", body.encode(), signed(body, time.time() - 3600))[0], 401, "an hour old")
    equal(tell("slack", body.replace("app", "apq").encode(), signed(body))[0], 401, "changed on the way")
    equal(tell("slack", body.encode(), {})[0], 401, "unsigned")


def standard():
    def signed(body, id="msg_1", at=None, secret=STANDARD_SECRET):
        at = at or datetime.now(tz=timezone.utc)
        signature = Webhook(secret).sign(id, at, body)
        return {"webhook-id": id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}

    body = json.dumps({"type": "invoice.paid", "data": {"text": "paid"}})
    status, told = tell("standard", body, signed(body))
    equal((status, told["status"]), (202, "accepted"), "an event")
    called_back("paid", "webhook:standard:msg_1")
    equal(tell("standard", body, signed(body))[1], {**told, "status": "duplicate"}, "the same event again")
    equal(tell("standard", body, signed(body, id="msg_2"))[0], 202, "another id is another event")
    called_back("paid", "webhook:standard:msg_2")
    rotated = signed(body, id="msg_3")
    rotated["webhook-signature"] = "v1,c2lnbmF0dXJl v1a,eA== " + rotated["webhook-signature"]
    equal(tell("standard", body, rotated)[0], 202, "one signature of several")
    called_back("paid", "webhook:standard:msg_3")
    stale = datetime.now(tz=timezone.utc) - timedelta(hours=1)
    equal(tell("standard", body, signed(body, at=stale))[0], 401, "an hour old")
    equal(tell("standard", body, signed(body, at=stale + timedelta(hours=2)))[0], 401, "an hour ahead")
    equal(tell("standard", body, signed(body, secret="whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"))[0], 401, "another secret")
    equal(tell("standard", body + " ", signed(body))[0], 401, "changed on the way")


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Callback)
threading.Thread(target=server.serve_forever, daemon=True).start()
slack()
standard()
print(f"{PASSED} passed, 0 failed")
