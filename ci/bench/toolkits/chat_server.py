"""A chat server without a model: it knows the answers to half of the questions, and fails as it is told."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG_SECONDS = 3600.0
USAGE = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}


class ChatServer:
    """Serves `/v1/chat/completions` on a free port.

    Whether the n-th request of a question fails depends on both, so all toolkits meet the same faults.

    Args:
        questions: rows with `question` and `answer`.
        faults: the shares of requests that fail, by kind: `429`, `500`, `torn`, `hang`.
        latency: seconds that an answer takes.

    Attributes:
        answered: how often each question was answered.
    """

    def __init__(self, questions: list[dict[str, str]], faults: dict[str, float], latency: float = 0.0) -> None:
        self.answered: Counter[int] = Counter()
        self._asked: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._faults, self._latency, self._questions = faults, latency, questions
        self._numbers = {row["question"].strip(): number for number, row in enumerate(questions)}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._send(200, json.dumps({"object": "list", "data": [{"id": "fake", "object": "model"}]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    outer._answer(self, body)
                except (BrokenPipeError, ConnectionResetError):  # the client has gone
                    self.close_connection = True

            def _send(self, code: int, body: bytes, torn: bool = False, kind: str = "application/json") -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if torn else body)
                self.close_connection = self.close_connection or torn

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: Any, body: dict[str, Any]) -> None:
        text = body["messages"][-1]["content"]
        text = text if isinstance(text, str) else text[0]["text"]
        number = self._numbers[text.strip()]
        with self._lock:
            self._asked[number] += 1
            attempt = self._asked[number]
        time.sleep(self._latency)
        fault = self._fault(number, attempt)
        if fault == "hang":
            handler.connection.settimeout(HANG_SECONDS)
            handler.rfile.read(1)  # returns when the client gives up
            handler.close_connection = True
        elif fault in ("429", "500"):
            handler._send(int(fault), json.dumps({"error": {"message": "busy", "type": "server"}}).encode())
        else:
            answer = self._questions[number]["answer"] if number % 2 == 0 else "none"
            message = {"role": "assistant", "content": f"\\boxed{{{answer}}}"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            found = {"id": f"{number}-{attempt}", "object": "chat.completion", "created": 0, "model": "fake"}
            if body.get("stream"):
                delta = {"index": 0, "delta": message, "finish_reason": None}
                end = {"index": 0, "delta": {}, "finish_reason": "stop"}
                found["object"] = "chat.completion.chunk"
                events = ({**found, "choices": [delta]}, {**found, "choices": [end], "usage": USAGE})
                reply = "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n"
            else:
                reply = json.dumps({**found, "choices": [choice], "usage": USAGE})
            kind = "text/event-stream" if body.get("stream") else "application/json"
            handler._send(200, reply.encode(), fault == "torn", kind)
            if fault is None:
                with self._lock:
                    self.answered[number] += 1

    def _fault(self, number: int, attempt: int) -> str | None:
        draw = random.Random(f"{number}/{attempt}").random()
        for fault, share in self._faults.items():
            if draw < share:
                return fault
            draw -= share
        return None
