"""A real MCP server over stdio that answers as servers may, and those of the package ``mcp`` do not.

With an argument it also stays for a minute when its client has gone.
"""

import json
import os
import sys
import time

SCHEMA = {"type": "object", "properties": {"calls": {"type": "integer"}}, "required": ["calls"]}
calls = 0


def answer(method, params):
    if method == "initialize":
        server = {"name": "bare", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "ping":
        return {}
    if method == "tools/list":  # a page each
        names = ["silent", "false", "refuse", "process"]
        place = int(params.get("cursor", 0))
        tool = {"name": names[place], "inputSchema": {"type": "object"}}
        if tool["name"] == "false":
            tool["outputSchema"] = SCHEMA
        return {"tools": [tool]} | ({"nextCursor": str(place + 1)} if place + 1 < len(names) else {})
    assert method == "tools/call"
    return call(params["name"])


def call(name):
    global calls
    calls += 1
    if name == "silent":  # says what it has to say as data, and not as text
        return {"content": [], "structuredContent": {"calls": calls}}
    if name == "false":  # does not keep to its own schema
        return {"content": [], "structuredContent": {"calls": "many"}}
    if name == "process":
        return {"content": [{"type": "text", "text": str(os.getpid())}]}
    raise PermissionError("not allowed")


def main():
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        try:
            outcome = {"result": answer(message["method"], message.get("params") or {})}
        except PermissionError as error:
            outcome = {"error": {"code": -32000, "message": str(error)}}  # a code that servers use as they like
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **outcome}), flush=True)
    if len(sys.argv) > 1:
        time.sleep(60)


if __name__ == "__main__":
    main()
