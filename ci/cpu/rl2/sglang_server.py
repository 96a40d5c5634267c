"""A server that speaks as much of sglang's protocol as RL2 asks for: transformers generates, in float32.

python sglang_server.py '{"model_path": ..., "host": ..., "port": ...}'
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

from hf_sampling import Answer, end_ids, load_model, sample

GATHERING = 0.003
"""Seconds that the server waits for more requests before it begins a batch."""

NEUTRAL = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1, "stop": None}
"""Sampling parameters that may be given if they change nothing."""


class Server:
    """The model, and the requests that wait for it."""

    def __init__(self, model_path: str) -> None:
        self.model = load_model(model_path)
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.end_ids = end_ids(self.model)
        self.waiting: asyncio.Queue[tuple[list[int], dict[str, Any], asyncio.Future[Answer]]] = asyncio.Queue()

    async def generate(self, request: web.Request) -> web.Response:
        asked = await request.json()
        params = dict(asked["sampling_params"])
        temperature, limit = params.pop("temperature", 1.0), params.pop("max_new_tokens", 128)
        skip, stop_ids = params.pop("skip_special_tokens", True), set(params.pop("stop_token_ids", None) or ())
        params.pop("no_stop_trim", None)  # stop strings are refused, so there is none to trim
        unknown = {name: value for name, value in params.items() if value != NEUTRAL.get(name, object())}
        room = self.model.config.max_position_embeddings - len(asked["input_ids"])
        if unknown or limit > room:
            what = f"this server has no {unknown}" if unknown else f"{limit} new tokens, and there is room for {room}"
            return web.json_response({"error": {"message": what}}, status=400)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        await self.waiting.put(
            (asked["input_ids"], {"temperature": temperature, "limit": limit, "stop_ids": stop_ids}, answer)
        )
        ids, logprobs = await answer
        stopped = ids[-1] in self.end_ids | stop_ids
        meta_info = {
            "output_token_logprobs": [[logprob, token, None] for token, logprob in zip(ids, logprobs, strict=True)],
            "completion_tokens": len(ids),
            "finish_reason": {"type": "stop", "matched": ids[-1]} if stopped else {"type": "length", "length": limit},
        }
        text = self.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        return web.json_response({"text": text, "meta_info": meta_info})

    async def serve(self) -> None:
        """Answer whatever requests are waiting as one batch, again and again."""
        while True:
            batch = [await self.waiting.get()]
            await asyncio.sleep(GATHERING)
            while not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            prompts, params, answers = zip(*batch, strict=True)
            limits, temperatures, stops = ([p[name] for p in params] for name in ("limit", "temperature", "stop_ids"))
            sampled = await asyncio.to_thread(sample, self.model, prompts, limits, temperatures, stop_ids=stops)
            for answer, of_prompt in zip(answers, sampled, strict=True):
                answer.set_result(of_prompt)

    async def update_weights_from_tensor(self, request: web.Request) -> web.Response:
        asked = await request.json()
        weights = {
            name: pickle.loads(of_ranks[0])
            for of_engine in asked["serialized_named_tensors"]
            for name, of_ranks in pickle.loads(base64.b64decode(of_engine))
        }
        own = self.model.state_dict()
        if not weights.keys() <= own.keys():
            return web.json_response(
                {"success": False, "message": f"no such weights: {weights.keys() - own.keys()}"}, status=400
            )
        for name, tensor in weights.items():
            own[name].copy_(tensor)
        return web.json_response({"success": True, "message": ""})

    async def get_weights_by_name(self, request: web.Request) -> web.Response:
        asked = await request.json()
        weight = self.model.state_dict()[asked["name"]]
        return web.json_response(weight[: asked.get("truncate_size", 100)].tolist())

    async def nothing(self, request: web.Request) -> web.Response:
        """Answer what needs no doing: there is one owner of the memory."""
        return web.json_response({"success": True})


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    args = json.loads(sys.argv[1])
    torch.set_num_threads(1)  # for models small enough for a CPU, more threads are slower
    torch.manual_seed(args.get("random_seed") or 0)
    threading.Thread(target=end_with_parent, daemon=True).start()
    server = Server(args["model_path"])
    app = web.Application(client_max_size=1 << 30)

    async def begin(app: web.Application) -> None:
        app["serving"] = asyncio.create_task(server.serve())

    app.on_startup.append(begin)
    app.router.add_post("/generate", server.generate)
    app.router.add_post("/update_weights_from_tensor", server.update_weights_from_tensor)
    app.router.add_post("/get_weights_by_name", server.get_weights_by_name)
    for path in ("/release_memory_occupation", "/resume_memory_occupation"):
        app.router.add_post(path, server.nothing)
    for path in ("/health", "/health_generate", "/get_model_info", "/get_server_info"):
        app.router.add_get(path, server.nothing)
    web.run_app(app, host=args["host"], port=args["port"], print=None, access_log=None)


if __name__ == "__main__":
    main()
