"""Models behind an OpenAI-compatible server: by token ids where it takes and returns them (vLLM), else by text.

With token ids (:func:`server_agent`) the server is given the ids of a prompt and returns those that it sampled, so an
episode is as exact as one of a model in this process. Before the first episode it is asked what it can do
(:func:`probe`), and what would make the results wrong is refused. With text (:func:`chat_agent`) it is given messages.

A request that the server cannot answer now (429, 5xx, no or half an answer) is sent again, after a pause: nothing was
sampled. If it still fails, the episode has failed, and is not the model's.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import random
import re
import time
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread

from gem.evaluation.agents import (
    AgentFailed,
    Answer,
    ContextFull,
    FunctionAgent,
    MakeEnv,
    Message,
    Misconfigured,
    TokenAgent,
)
from gem.faults import error_message
from gem.rollout.engine import Engine, Response
from gem.rollout.limits import Limits
from gem.rollout.rendering import ChatRenderer
from gem.tasks import Task
from gem.tools.bounded_http import send

TRIES = 6
"""How often a request is sent that the server does not answer."""

FIRST_PAUSE = 0.5
"""Seconds before it is sent again; each further pause is twice as long, and none is exactly that long."""

LONGEST_ANSWER = 8 << 20
"""Bytes."""

_TEMPORARY = frozenset({408, 409, 425, 429})
"""HTTP errors after which a request is sent again, beside all from 500 on."""

_OF_THE_SET_UP = frozenset({401, 402, 403, 404, 405})
"""HTTP errors that every request would get."""

_TOO_LONG = re.compile(r"context[ _](length|window|size)|too long|maximum context|too many tokens", re.IGNORECASE)
_NOISE = 0.02
"""By which the log-probability of a token may differ from request to request; at temperature 2 it is farther off."""

_PROBE = "The quick brown fox jumps over the lazy dog"


class ServerFailed(AgentFailed):
    """The server did not answer, or not what it should."""


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server.

    Attributes:
        url: up to ``/v1``.
        model: as the server names it; "" for the only one that it has.
        api_key: sent as a bearer token; "" for none.
        timeout: seconds for an answer.
    """

    url: str
    model: str = ""
    api_key: str = ""
    timeout: float = 300.0

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request, which is sent again while the server cannot answer.

        Raises:
            ServerFailed: it does not answer after :data:`TRIES` requests, or not this one.
            ContextFull: it says that the prompt is too long.
            Misconfigured: it says that the key or the model is wrong; the message has its reason.
        """
        pause = FIRST_PAUSE
        for attempt in range(1, TRIES + 1):
            try:
                answer = json.loads(self._post(path, body))
                if not isinstance(answer, dict):
                    raise ValueError("the answer is no JSON object")
                return answer
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {_reason(error)}"
                if error.code == 400 and _TOO_LONG.search(reason):
                    raise ContextFull(reason) from None
                if error.code in _OF_THE_SET_UP:
                    raise Misconfigured(f"{self.url}{path}: {reason}") from None
                if error.code < 500 and error.code not in _TEMPORARY:  # of this request, such as a filter of contents
                    raise ServerFailed(f"{self.url}{path}: {reason}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:  # no connection, late, or half an answer
                reason = error_message(error)
            if attempt < TRIES:
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause *= 2
        raise ServerFailed(f"{self.url}{path} did not answer {TRIES} requests; the last: {reason}")

    def models(self) -> list[dict[str, Any]]:
        """Return what the server says of its models.

        Raises:
            ValueError: it cannot be reached, or does not say.
        """
        try:
            answer = send(f"{self.url}/models", None, self._headers(), min(30.0, self.timeout), LONGEST_ANSWER)
            return [dict(each) for each in json.loads(answer)["data"]]
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"cannot list the models of {self.url}: {error_message(error)}") from None

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        data = json.dumps({"model": self.model, **body}).encode()
        return send(f"{self.url}{path}", data, self._headers(), self.timeout, LONGEST_ANSWER)

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {"Content-Type": "application/json", **key}


@dataclass(frozen=True)
class Abilities:
    """What a server can do, as far as requests have shown.

    Attributes:
        model: its name.
        max_context: tokens of prompt and answer together; None if the server does not say.
        exact: whether it takes and returns token ids.
        processed: whether its log-probabilities are of the distribution that is sampled from, the temperature included.
        seeded: whether the same seed samples the same tokens.
    """

    model: str
    max_context: int | None
    exact: bool
    processed: bool
    seeded: bool


def probe(server: Server, prompt_ids: Sequence[int]) -> Abilities:
    """Ask a server what it can do.

    Args:
        server: which.
        prompt_ids: of any text, in the model's tokens.

    Raises:
        ServerFailed, ValueError: it does not answer, or has several models and none is named.
    """
    known = server.models()
    named = [each for each in known if not server.model or each.get("id") == server.model]
    if len(named) != 1:
        there = ", ".join(str(each.get("id")) for each in known)
        raise ValueError(f"name one of the server's models ({there}), not {server.model!r}")
    server = Server(server.url, str(named[0]["id"]), server.api_key, server.timeout)
    context = named[0].get("max_model_len")

    def sample(temperature: float) -> dict[str, Any]:
        return _choice(server.ask("/completions", _request(prompt_ids, 8, temperature, 7, ())))

    first, again = sample(1.0), sample(1.0)
    exact = isinstance(first.get("token_ids"), list) and first.get("prompt_token_ids") == list(prompt_ids)
    likely = [_most_likely(sample(temperature)) for temperature in (1.0, 2.0)]
    processed = None not in likely and abs(likely[0] - likely[1]) > _NOISE  # type: ignore[operator]
    seeded = first.get("token_ids", first.get("text")) == again.get("token_ids", again.get("text"))
    return Abilities(server.model, context if isinstance(context, int) else None, exact, processed, seeded)


class ServerEngine(Engine):
    """Samples token ids by a server.

    Args:
        server: which.
        stop_ids: tokens that end an answer.
        temperature: of what is sampled.
        seed: of what is sampled, with the episode's number and the turn.
        connections: requests at the same time.
        size: how many tokens there are.
        keep_logprobs: whether the server's log-probabilities are those of what is sampled from.
    """

    def __init__(
        self,
        server: Server,
        stop_ids: Sequence[int],
        temperature: float = 1.0,
        seed: int = 0,
        connections: int = 64,
        size: int = 1 << 31,
        keep_logprobs: bool = True,
    ) -> None:
        self._server = server
        self._stop_ids = tuple(stop_ids)
        self._temperature = temperature
        self._seed = seed
        self._connections = connections
        self._size = size
        self._keep_logprobs = keep_logprobs
        self._limiter: anyio.CapacityLimiter | None = None

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        """Ask the server.

        Raises:
            ServerFailed: it does not answer, or not with token ids.
            ContextFull, Misconfigured: it says that the request is wrong.
        """
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._connections)
        ids = list(prompt_ids)
        seed = int.from_bytes(hashlib.sha256(f"{self._seed} {episode} {len(ids)}".encode()).digest()[:4], "big") >> 1
        body = _request(ids, max_new_tokens, self._temperature, seed, self._stop_ids)
        answer = await anyio.to_thread.run_sync(self._server.ask, "/completions", body, limiter=self._limiter)
        choice = _choice(answer)
        sampled = choice.get("token_ids")
        if choice.get("prompt_token_ids") != ids:
            raise ServerFailed(f"{self._server.url} answered to another prompt")
        if not isinstance(sampled, list) or not all(type(each) is int and 0 <= each < self._size for each in sampled):
            raise ServerFailed(f"{self._server.url} answered with other than token ids: {sampled!r:.100}")
        chances = self._logprobs(choice, len(sampled)) if self._keep_logprobs else None
        return Response.of_server(sampled, chances, choice.get("finish_reason"), self._stop_ids)

    def _logprobs(self, choice: dict[str, Any], count: int) -> list[float] | None:
        """Return the log-probabilities of an answer; None if it has none.

        Raises:
            ServerFailed: they are no log-probabilities.
        """
        logprobs = choice.get("logprobs")
        chances = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if chances is None:
            return None
        numbers = isinstance(chances, list) and all(
            type(each) in (int, float) and math.isfinite(each) and each <= 1e-6 for each in chances
        )
        if not numbers or len(chances) != count:
            raise ServerFailed(f"{self._server.url} answered with other than log-probabilities: {chances!r:.100}")
        return [float(each) for each in chances]


def server_agent(
    server: Server,
    tokenizer: Any,
    limits: Limits | None = None,
    make_env: MakeEnv = Task.make,
    temperature: float = 1.0,
    seed: int = 0,
    connections: int = 64,
) -> tuple[TokenAgent, Abilities]:
    """Return an agent with a model behind a server, by token ids, and what the server can do.

    Args:
        server: which.
        tokenizer: of the model, with its chat template.
        limits: of turns, tokens and seconds; the context is the server's unless it is limited further.
        make_env: builds the environment of a task.
        temperature: of what is sampled.
        seed: of what is sampled.
        connections: requests at the same time.

    Raises:
        ServerFailed: it does not answer.
        ValueError: it takes or returns no token ids; or its log-probabilities leave the temperature out, and that is
            not 1.
    """
    renderer = ChatRenderer(tokenizer)
    abilities = probe(server, list(tokenizer.encode(_PROBE, add_special_tokens=False)))
    if not abilities.exact:
        raise ValueError(
            f"{server.url} does not take and return token ids, as vLLM does (return_token_ids): use it by text (--chat)"
        )
    if not abilities.processed and temperature not in (0, 1):
        raise ValueError(
            f"the log-probabilities of {server.url} leave the temperature of {temperature:g} out: start vLLM with "
            "--logprobs-mode processed_logprobs"
        )
    limits = limits or Limits()
    if abilities.max_context is not None and (limits.max_context or abilities.max_context + 1) > abilities.max_context:
        limits = Limits(**{**vars(limits), "max_context": abilities.max_context})
    named = Server(server.url, abilities.model, server.api_key, server.timeout)
    keep = abilities.processed or temperature == 1
    engine = ServerEngine(named, renderer.stop_ids, temperature, seed, connections, len(tokenizer), keep)
    settings = {"temperature": temperature, "seed": seed, "server": server.url, "max_context": abilities.max_context}
    return TokenAgent(abilities.model, engine, renderer, limits, make_env, settings), abilities


def chat_agent(
    server: Server,
    limits: Limits | None = None,
    make_env: MakeEnv = Task.make,
    temperature: float | None = None,
) -> FunctionAgent:
    """Return an agent with a model behind a server, by text: ``/chat/completions``, as commercial servers have it.

    Args:
        server: which; ``model`` must be named.
        limits: ``max_new_tokens`` of each turn, turns and seconds.
        make_env: builds the environment of a task.
        temperature: None for the server's.

    Raises:
        ValueError: no model is named.
    """
    if not server.model:
        raise ValueError("name the server's model")
    limits = limits or Limits()
    settings = {} if temperature is None else {"temperature": temperature}

    def answer(messages: list[Message]) -> str | Answer:
        shown = [{**each, "role": "user" if each["role"] == "tool" else each["role"]} for each in messages]
        body = {"messages": shown, "max_tokens": limits.max_new_tokens, **settings}
        received = server.ask("/chat/completions", body)
        choice = _choice(received)
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if content is None and choice.get("finish_reason") == "length":
            content = ""  # all its tokens went into thoughts: that is the model's doing
        if not isinstance(content, str):
            raise ServerFailed(f"{server.url} answered without a text")
        usage = received.get("usage")
        counts = [usage.get(f"{of}_tokens") for of in ("prompt", "completion")] if isinstance(usage, dict) else [None]
        counted = all(type(count) is int and 0 <= count < 1 << 53 for count in counts)
        return Answer(content, *counts) if counted else content

    described = {**settings, "server": server.url}
    return FunctionAgent(server.model, answer, limits, make_env, described)


def _request(
    ids: Sequence[int], max_tokens: int, temperature: float, seed: int, stop_ids: Sequence[int]
) -> dict[str, Any]:
    return {
        "prompt": list(ids),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "logprobs": 1,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "stop_token_ids": list(stop_ids),
    }


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    try:
        choice = answer["choices"][0]
    except (LookupError, TypeError):
        raise ServerFailed(f"the server answered no choice: {json.dumps(answer)[:200]}") from None
    if not isinstance(choice, dict):
        raise ServerFailed(f"the server answered no choice: {json.dumps(answer)[:200]}")
    return choice


def _most_likely(choice: dict[str, Any]) -> float | None:
    """Return the log-probability of the likeliest first token; None if the server does not say."""
    try:
        return float(max((choice["logprobs"]["top_logprobs"][0]).values()))
    except (LookupError, TypeError, AttributeError, ValueError):
        return None


def _reason(error: urllib.error.HTTPError) -> str:
    body = getattr(error, "body", b"")  # which was read within the time of the request
    return " ".join(body.decode("utf-8", "replace").split())[:300] or str(error.reason)
