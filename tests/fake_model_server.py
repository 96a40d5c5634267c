"""A server in the form of vLLM's that answers guesses, fixed by prompt and seed, and that can be made to fail."""

import hashlib
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer(ThreadingHTTPServer):
    """Serves one model.

    Args:
        tokenizer: in whose tokens it answers.
        processed: whether its log-probabilities take the temperature into account.
        ids: whether it returns token ids, and counts of tokens.
        faults: by name ("429", "500", "hang", "torn"), the share of the requests.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, tokenizer, processed=True, ids=True, faults=None, hang=5.0, max_model_len=512):
        self.tokenizer, self.processed, self.ids = tokenizer, processed, ids
        self.faults, self.hang, self.max_model_len = faults or {}, hang, max_model_len
        self.chance = random.Random(0)
        self.requests = self.failed = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.shutdown()
        self.server_close()

    def answer(self, prompt, body):
        seed = hashlib.sha256(json.dumps([prompt, body.get("seed")]).encode()).digest()[0]
        return f"\\boxed{{{seed % 9 + 1}}}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send({"data": [{"id": "fake", "max_model_len": self.server.max_model_len}]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests += 1
        drawn = server.chance.random()
        for fault, share in server.faults.items():
            if drawn < share:
                server.failed += 1
                return self.fail(fault)
            drawn -= share
        if body["model"] != "fake":
            return self.send({"error": "no such model"}, 404)
        if self.path.endswith("/chat/completions"):
            if sum(len(each["content"]) for each in body["messages"]) > server.max_model_len * 4:
                return self.send({"error": "This model's maximum context length is exceeded"}, 400)
            text = server.answer(body["messages"], body)
            counted = {"prompt_tokens": 100 * len(body["messages"]), "completion_tokens": 10} if server.ids else None
            return self.send({"choices": [{"message": {"content": text}}], "usage": counted})
        ids = server.tokenizer.encode(server.answer(body["prompt"], body)) + [body["stop_token_ids"][-1:] or [0]][0]
        ids = ids[: body["max_tokens"]]
        scale = 1 / (body["temperature"] or 1) if server.processed else 1
        choice = {
            "text": server.tokenizer.decode(ids),
            "finish_reason": "stop" if ids[-1:] == body["stop_token_ids"][-1:] else "length",
            "logprobs": {
                "token_logprobs": [-0.5 * scale] * len(ids),
                "top_logprobs": [{"x": -0.25 * scale}] * len(ids),
            },
        }
        if server.ids:
            choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        return self.send({"choices": [choice]})

    def fail(self, fault):
        if fault == "hang":
            time.sleep(self.server.hang)
            self.close_connection = True
        elif fault == "torn":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"tok')
            self.close_connection = True
        else:
            self.send({"error": "busy"}, int(fault))

    def send(self, data, status=200):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
