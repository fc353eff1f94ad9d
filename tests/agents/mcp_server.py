"""An MCP server over stdio that misbehaves as asked; the standard library alone, so that it is there in 50 ms.

It writes what it gets into the file named by its first argument, one JSON object a line, with its process id.

    python server.py JOURNAL [silent | refuse | crash | slow]
"""

import json
import os
import signal
import sys
import threading
import time

JOURNAL = sys.argv[1]
MODE = sys.argv[2] if len(sys.argv) > 2 else ""
OUT = threading.Lock()
TOOLS = ["echo", "hang", "polite", "die", "flood", "line", "notes", "errors", "junk", "sleep", "jam", "fail", "steps"]
cancelled: dict[object, threading.Event] = {}


def note(what: str, **more: object) -> None:
    with open(JOURNAL, "a") as journal:
        journal.write(json.dumps({"what": what, "pid": os.getpid(), **more}) + "\n")


def send(message: dict) -> None:
    data = (json.dumps({"jsonrpc": "2.0", **message}) + "\n").encode()
    with OUT:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def text(call: object, said: str) -> None:
    send({"id": call, "result": {"content": [{"type": "text", "text": said}], "isError": False}})


def work(call: object, name: str, args: dict, token: object) -> None:
    note("called", tool=name)
    match name:
        case "echo":
            text(call, str(args.get("text", "")))
        case "fail":
            send({"id": call, "result": {"content": [{"type": "text", "text": "it broke"}], "isError": True}})
        case "sleep":
            time.sleep(float(args.get("seconds", 1)))
            text(call, "slept")
        case "polite":
            if cancelled[call].wait(60):
                note("obeyed")
            text(call, "waited")
        case "hang":
            time.sleep(60)  # and answers nobody
        case "die":
            os._exit(3)
        case "flood":
            text(call, "x" * int(args.get("bytes", 50_000_000)))
        case "line":
            with OUT:
                while True:
                    sys.stdout.buffer.write(b"y" * 1_000_000)
                    sys.stdout.buffer.flush()
        case "notes":
            while True:
                send({"method": "notifications/message", "params": {"level": "info", "data": "z" * 200}})
        case "junk":
            with OUT:
                for n in range(20_000):
                    sys.stdout.buffer.write(b"this is not JSON %d\n" % n)
                sys.stdout.buffer.flush()
            text(call, "after the junk")
        case "errors":
            for n in range(20_000):
                sys.stderr.write(f"a complaint {n}\n")
            sys.stderr.flush()
            text(call, "complained")
        case "steps":
            for n in range(3):
                if token is not None:
                    params = {"progressToken": token, "progress": n + 1, "total": 3, "message": f"step {n + 1}"}
                    send({"method": "notifications/progress", "params": params})
                time.sleep(0.15)
            text(call, "stepped")


def answer(message: dict) -> None:
    method, call, params = message.get("method"), message.get("id"), message.get("params") or {}
    if method == "initialize":
        if MODE == "slow":
            time.sleep(60)
        version = params["protocolVersion"]
        info = {"name": "misbehaving", "version": "1"}
        send({"id": call, "result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}})
    elif method == "tools/list":
        schema = {"type": "object", "additionalProperties": True}
        tools = [{"name": name, "description": name, "inputSchema": schema} for name in TOOLS]
        send({"id": call, "result": {"tools": tools}})
    elif method == "ping":
        send({"id": call, "result": {}})
    elif method == "tools/call" and params["name"] == "jam":
        note("called", tool="jam")
        time.sleep(60)  # in the loop that reads: deaf to pings, cancellations and everything else
    elif method == "tools/call":
        cancelled[call] = threading.Event()
        token = (params.get("_meta") or {}).get("progressToken")
        rest = (call, params["name"], params.get("arguments") or {}, token)
        threading.Thread(target=work, args=rest, daemon=True).start()
    elif method == "notifications/cancelled":
        note("cancelled", call=params.get("requestId"))
        if params.get("requestId") in cancelled:
            cancelled[params["requestId"]].set()
    elif call is not None:
        send({"id": call, "error": {"code": -32601, "message": f"no method {method}"}})


def main() -> None:
    note("began")
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if MODE == "crash":
        sys.exit("cannot start: no licence")
    if MODE == "silent":
        time.sleep(60)
    for line in sys.stdin:
        answer(json.loads(line))
    note("end of input")
    if MODE == "stubborn":
        time.sleep(60)


main()
