"""Twenty clients with a kept connection each, and twenty with a new one for each request: four hundred turns a second
in all, until standard input closes. Counts what became of them; a client tries again only where its connection was
closed while idle, before it wrote anything."""
import http.client, json, os, random, select, sys, threading, time

key = open(os.path.expanduser("~/.local/state/hermes-gateway/default/api-key")).read().strip()
seen = {"answered": 0, "closed while idle": 0, "slowest": 0.0, "failed": []}
over, lock = threading.Event(), threading.Lock()


def is_closed(connection):
    return connection.sock is not None and select.select([connection.sock], [], [], 0)[0] != []


def client(number, kept):
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    asked = 0
    while not over.is_set():
        asked += 1
        text = f"request {asked} of {number}"
        if is_closed(connection):
            connection.close()
            with lock:
                seen["closed while idle"] += 1
        began = time.monotonic()
        try:
            body = json.dumps({"messages": [{"role": "user", "content": text}]})
            headers = {"Authorization": f"Bearer {key}"} | ({} if kept else {"Connection": "close"})
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            told = answer.read()
            if answer.status != 200 or json.loads(told)["choices"][0]["message"]["content"] != text:
                raise ValueError(f"{answer.status} {told!r}")
            failure = None
        except (OSError, http.client.HTTPException, ValueError) as error:
            failure = f"{text} ({kept=}): {error!r}"
            connection.close()
        with lock:
            seen["slowest"] = max(seen["slowest"], time.monotonic() - began)
            if failure is None:
                seen["answered"] += 1
            else:
                seen["failed"].append(failure)
        time.sleep(random.uniform(0.05, 0.15))


threads = [threading.Thread(target=client, args=(n, n % 2 == 0)) for n in range(40)]
for thread in threads:
    thread.start()
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
print(json.dumps(seen))
