"""An agent that speaks the Agent Client Protocol and does what its prompt says, well or badly.

Its working directory has what it knows: `SESSION.session`, a prompt a line; `log`, what happened to it, a line each.
Flags: --no-load (it restores nothing), --resume (it restores without a replay), --fail-load (it dies of a restore).
"""
import json
import os
import sys
import threading
import time
import uuid

FLAGS = set(sys.argv[1:])
lock = threading.Lock()
answers = {}
answered = threading.Condition()
cancelled = set()


def write(text):
    with lock:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()


def send(message):
    write(json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False) + "\n")


def log(line):
    with open("log", "a") as file:
        file.write(line + "\n")


def update(session, **fields):
    send({"method": "session/update", "params": {"sessionId": session, "update": fields}})


def say(session, text, kind="agent_message_chunk"):
    update(session, sessionUpdate=kind, content={"type": "text", "text": text})


def ask(method, params):
    number = f"mine-{uuid.uuid4()}"
    send({"id": number, "method": method, "params": params})
    with answered:
        answered.wait_for(lambda: number in answers)
        return answers.pop(number)


def past(session):
    with open(f"{session}.session") as file:
        return file.read().splitlines()


def wait_for_go(session):
    while not os.path.exists("go"):
        if session in cancelled:
            return False
        time.sleep(0.005)
    return True


def work(session, texts):
    """Does a prompt; the stop reason, or an error."""
    text = texts[-1]
    word, _, rest = text.partition(" ")
    if word == "say":
        say(session, rest)
    elif word == "texts":
        say(session, json.dumps(texts))
    elif word == "history":
        say(session, json.dumps(past(session)[:-1]))
    elif word == "pid":
        say(session, str(os.getpid()))
    elif word == "env":
        say(session, json.dumps(dict(os.environ)))
    elif word == "permit":
        kinds = rest.split()
        options = [{"optionId": f"id-{kind}", "name": kind, "kind": kind} for kind in kinds]
        call = {"toolCallId": "1", "title": "rm -rf"}
        answer = ask("session/request_permission", {"sessionId": session, "toolCall": call, "options": options})
        say(session, json.dumps(answer.get("result")))
    elif word == "read":
        say(session, str(ask("fs/read_text_file", {"sessionId": session, "path": "/etc/passwd"})["error"]["code"]))
    elif word == "crash":
        say(session, "half a ")
        sys.stderr.write("first line\nout of paper\n")
        sys.stderr.flush()
        os._exit(3)
    elif word == "die":
        os._exit(4)
    elif word == "flood":
        say(session, "a lot: ")
        for _ in range(100):
            write("x" * 100_000)
        time.sleep(3600)
    elif word == "garbage":
        write("Loading model...\n")
        time.sleep(3600)
    elif word == "hang":
        time.sleep(3600)
    elif word == "mute":
        sys.stdout.flush()
        os.close(1)
        time.sleep(3600)
    elif word in ("slow", "stubborn"):
        say(session, "one ")
        log("slow")
        if not wait_for_go(session if word == "slow" else None):
            log("cancelled")
            return {"stopReason": "cancelled"}
        say(session, "two")
    elif word == "tools":
        say(session, "hm", "agent_thought_chunk")
        update(session, sessionUpdate="tool_call", toolCallId="1", title="Look", status="pending")
        say(session, "Looking.")
        update(session, sessionUpdate="tool_call_update", toolCallId="1", status="completed")
        say(session, "Seen.")
        update(session, sessionUpdate="usage_update", used=1, size=2)
        return {"stopReason": "end_turn", "usage": {"inputTokens": 11, "outputTokens": 7, "totalTokens": 18}}
    elif word == "interleave":
        say("another", "not yours")
        send({"id": 999, "result": {}})
        send({"method": "$/unknown", "params": [1]})
        say(session, "yours")
        write("\n\n")
    elif word == "dribble":
        line = json.dumps({"jsonrpc": "2.0", "method": "session/update", "params": {
            "sessionId": session, "update": {
                "sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "grüße €😀"}}}},
            ensure_ascii=False) + "\r\n"
        for byte in line.encode():
            with lock:
                sys.stdout.buffer.write(bytes([byte]))
                sys.stdout.buffer.flush()
    elif word == "long":
        return {"stopReason": "max_tokens"}
    elif word == "refuse":
        return {"stopReason": "refusal"}
    elif word == "fail":
        raise RuntimeError("no credit")
    return {"stopReason": "end_turn"}


def prompt(number, params):
    session = params["sessionId"]
    texts = [block["text"] for block in params["prompt"]]
    with open(f"{session}.session", "a") as file:
        file.write(texts[-1] + "\n")
    log(f"asked {len(texts)}")
    try:
        send({"id": number, "result": work(session, texts)})
    except RuntimeError as error:
        send({"id": number, "error": {"code": -32603, "message": "Internal error", "data": {"details": str(error)}}})
    cancelled.discard(session)


def handle(message):
    method, number, params = message.get("method"), message.get("id"), message.get("params", {})
    if method is None:
        with answered:
            answers[number] = message
            answered.notify_all()
    elif method == "initialize":
        capabilities = {"loadSession": "--no-load" not in FLAGS}
        if "--resume" in FLAGS:
            capabilities["sessionCapabilities"] = {"resume": {}}
        send({"id": number, "result": {"protocolVersion": 1, "agentCapabilities": capabilities}})
    elif method == "session/new":
        session = uuid.uuid4().hex
        open(f"{session}.session", "w").close()
        log(f"new {params['cwd']}")
        send({"id": number, "result": {"sessionId": session}})
    elif method in ("session/load", "session/resume"):
        session = params["sessionId"]
        log(method)
        if "--fail-load" in FLAGS:
            os._exit(5)
        if not os.path.exists(f"{session}.session"):
            send({"id": number, "error": {"code": -32602, "message": "unknown session"}})
            return
        if method == "session/load":
            for line in past(session):
                say(session, line, "user_message_chunk")
                say(session, "said before", "agent_message_chunk")
        send({"id": number, "result": None})
    elif method == "session/prompt":
        threading.Thread(target=prompt, args=(number, params), daemon=True).start()
    elif method == "session/cancel":
        log("cancel")
        cancelled.add(params["sessionId"])


log(f"started {os.getpid()}")
for line in sys.stdin.buffer:
    handle(json.loads(line))
