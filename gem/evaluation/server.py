"""Models behind an OpenAI-compatible server: by token ids where it takes and returns them (vLLM), else by text.

With token ids (:func:`server_agent`) the server is given the ids of a prompt and returns those that it sampled, so an
episode is as exact as one of a model in this process. Before the first episode it is asked what it can do
(:func:`probe`), and what would make the results wrong is refused. With text (:class:`ChatAgent`) it is given messages.

A request that the server cannot answer now (429, 5xx, no or half an answer) is sent again, after a pause: nothing was
sampled. If it still fails, the episode has failed, and is not the model's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gem.evaluation.agents import Answer, MakeEnv, Message, TextAgent, TokenAgent
from gem.evaluation.client import Client, Server, ServerFailed
from gem.rollout.engine import Engine, Response
from gem.rollout.limits import Limits
from gem.rollout.rendering import ChatRenderer
from gem.tasks import Task

T = TypeVar("T")

_NOISE = 0.02
"""By which the log-probability of a token may differ from request to request; at temperature 2 it is farther off."""

_PROBE = "The quick brown fox jumps over the lazy dog"


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
    """Find out what a server can do, by a few requests.

    Args:
        server: which.
        prompt_ids: of any text, in the model's tokens.

    Raises:
        ServerFailed: it does not answer.
        ValueError: it has several models and none is named, or not the one that is.
    """
    return _run(_probe(server, prompt_ids))


def list_models(server: Server) -> list[str]:
    """Return the names of a server's models.

    Raises:
        ServerFailed: it does not answer, or not with models.
    """

    async def ask() -> list[dict[str, Any]]:
        client = Client(server)
        try:
            return await _models(client)
        finally:
            await client.aclose()

    return [str(each["id"]) for each in _run(ask())]


def _run(steps: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own, in a thread, since the caller may have one: a notebook has."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, steps).result()


async def _models(client: Client) -> list[dict[str, Any]]:
    known = (await client.ask("/models", None, tries=2)).get("data")  # a wrong URL is reported soon
    if not isinstance(known, list) or not known or not all(isinstance(each, dict) and "id" in each for each in known):
        raise ServerFailed(f"{client.server.url}/models has no list of models: {json.dumps(known)[:200]}")
    return known


async def _probe(server: Server, prompt_ids: Sequence[int]) -> Abilities:
    client = Client(server)
    try:
        model = _named_model(await _models(client), server)
        client.server = replace(server, model=str(model["id"]))

        async def sample(temperature: float) -> dict[str, Any]:
            return _choice(await client.ask("/completions", _request(prompt_ids, 8, temperature, 7, ())))

        first, again, hot = await sample(1.0), await sample(1.0), await sample(2.0)
    finally:
        await client.aclose()
    context = model.get("max_model_len")
    exact = isinstance(first.get("token_ids"), list) and first.get("prompt_token_ids") == list(prompt_ids)
    likely, likely_hot = _most_likely(first), _most_likely(hot)
    processed = likely is not None and likely_hot is not None and abs(likely - likely_hot) > _NOISE
    seeded = first.get("token_ids", first.get("text")) == again.get("token_ids", again.get("text"))
    return Abilities(str(model["id"]), context if isinstance(context, int) else None, exact, processed, seeded)


def _named_model(known: list[dict[str, Any]], server: Server) -> dict[str, Any]:
    """Return the entry of a server's model in its list."""
    named = [each for each in known if not server.model or each["id"] == server.model]
    if len(named) != 1:
        there = ", ".join(str(each["id"])[:100] for each in known[:20])
        raise ValueError(f"name one of the server's models ({there}), not {server.model!r}")
    return dict(named[0])


class ServerEngine(Engine):
    """Samples token ids by a server.

    Args:
        client: of the server.
        stop_ids: tokens that end an answer.
        temperature: of what is sampled.
        seed: of what is sampled, with the episode's number and the turn.
        size: how many tokens there are.
        keep_logprobs: whether the server's log-probabilities are those of what is sampled from.
    """

    def __init__(
        self,
        client: Client,
        stop_ids: Sequence[int],
        temperature: float = 1.0,
        seed: int = 0,
        size: int = 1 << 31,
        keep_logprobs: bool = True,
    ) -> None:
        self._client = client
        self._server = client.server
        self._stop_ids = tuple(stop_ids)
        self._temperature = temperature
        self._seed = seed
        self._size = size
        self._keep_logprobs = keep_logprobs

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        """Ask the server.

        Raises:
            ServerFailed: it does not answer, or not with token ids.
            ContextFull, Misconfigured: it says that the request is wrong.
        """
        ids = list(prompt_ids)
        seed = int.from_bytes(hashlib.sha256(f"{self._seed} {episode} {len(ids)}".encode()).digest()[:4], "big") >> 1
        body = _request(ids, max_new_tokens, self._temperature, seed, self._stop_ids)
        choice = _choice(await self._client.ask("/completions", body))
        sampled = choice.get("token_ids")
        if choice.get("prompt_token_ids") != ids:
            raise ServerFailed(f"{self._server.url} answered to another prompt")
        if not isinstance(sampled, list) or not all(type(each) is int and 0 <= each < self._size for each in sampled):
            raise ServerFailed(f"{self._server.url} answered with other than token ids: {sampled!r:.100}")
        chances = self._logprobs(choice, len(sampled)) if self._keep_logprobs else None
        return Response.of_server(sampled, chances, choice.get("finish_reason"), self._stop_ids)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

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
    client = Client(replace(server, model=abilities.model), connections)
    keep = abilities.processed or temperature == 1
    engine = ServerEngine(client, renderer.stop_ids, temperature, seed, len(tokenizer), keep)
    settings = {"temperature": temperature, "seed": seed, "server": server.url, "max_context": abilities.max_context}
    return TokenAgent(abilities.model, engine, renderer, limits, make_env, settings), abilities


class ChatAgent(TextAgent):
    """A model behind a server, by text: ``/chat/completions``, as commercial servers have it.

    Args:
        server: which; ``model`` must be named.
        limits: ``max_new_tokens`` of each turn, turns and seconds.
        make_env: builds the environment of a task.
        temperature: None for the server's.
        connections: requests at the same time.

    Raises:
        ValueError: no model is named.
    """

    def __init__(
        self,
        server: Server,
        limits: Limits | None = None,
        make_env: MakeEnv = Task.make,
        temperature: float | None = None,
        connections: int = 64,
    ) -> None:
        if not server.model:
            raise ValueError("name the server's model")
        super().__init__(limits, make_env)
        self.name = server.model
        self._client = Client(server, connections)
        self._settings = {} if temperature is None else {"temperature": temperature}

    def begin(self, task: Task, number: int) -> Callable[[list[Message]], Any]:
        """Return the function that sends the messages to the server."""
        return self._answer

    async def _answer(self, messages: list[Message]) -> str | Answer:
        shown = [{**each, "role": "user" if each["role"] == "tool" else each["role"]} for each in messages]
        body = {"messages": shown, "max_tokens": self._limits.max_new_tokens, **self._settings}
        received = await self._client.ask("/chat/completions", body)
        choice = _choice(received)
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if content is None and choice.get("finish_reason") == "length":
            content = ""  # all its tokens went into thoughts: that is the model's doing
        if not isinstance(content, str):
            raise ServerFailed(f"{self._client.server.url} answered without a text")
        usage = received.get("usage")
        counts = [usage.get(f"{of}_tokens") for of in ("prompt", "completion")] if isinstance(usage, dict) else [None]
        counted = all(type(count) is int and 0 <= count < 1 << 53 for count in counts)
        return Answer(content, *counts) if counted else content

    def describe(self) -> dict[str, Any]:
        """Return name, limits, temperature and server."""
        return {**super().describe(), **self._settings, "server": self._client.server.url}

    async def aclose(self) -> None:
        """Close the connections, and end the threads and processes of environments."""
        await self._client.aclose()
        await super().aclose()


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
