"""Sends requests one after the other until standard input closes, and counts what becomes of them."""
import json, select, socket, sys

seen = {"answered": 0, "refused": 0, "cut": 0}
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60) as stream:
            stream.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = stream.recv(4096)
        # A kill may cut what was accepted already; that is not a refusal.
        seen["answered" if answer.startswith(b"HTTP/1.1 200") else "cut"] += 1
    except ConnectionRefusedError:
        seen["refused"] += 1
    except ConnectionError:
        seen["cut"] += 1
print(json.dumps(seen))
