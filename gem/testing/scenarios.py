"""The scenarios of the conformance suite: the tasks, what a scripted engine samples, and what limits there are."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from gem.core import Env, Info, StepResult
from gem.registry import ENV_REGISTRY, register
from gem.rollout.engine import Engine, Response
from gem.tasks import Task

SCENARIO_ENV = "test:Scenario-v0"


class ScenarioEnv(Env):
    """Takes any answer; the reward depends on its length.

    Args:
        length: turns.
        says: the text of every observation, beside the turn's number.
        fails_at: the turn in which it raises an OSError; 0 for ``reset``; None for never.
        fails_on: the answer to which it raises an OSError.
        tool_turns: the turns that it marks as a tool's.
    """

    def __init__(
        self,
        length: int = 4,
        says: str = "on",
        fails_at: int | None = None,
        fails_on: str | None = None,
        tool_turns: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.length, self.says, self.fails_at, self.fails_on, self.turn = length, says, fails_at, fails_on, 0
        self.tool_turns = list(tool_turns)

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin; the seed is in the observation."""
        super().reset(seed)
        self.turn = 0
        if self.fails_at == 0:
            raise OSError("the disk is full")
        return f"Begin {seed}. {self.says}", {}

    def step(self, action: str) -> StepResult:
        """Take any answer."""
        self.turn += 1
        if self.turn == self.fails_at or action == self.fails_on:
            raise OSError("the disk is full")
        reward = 0.25 * self.turn + 0.125 * (len(action) % 8)  # sums of these are exact in float32
        ended = self.turn == self.length
        info = {"success": ended, "use_tool": self.turn in self.tool_turns}
        return f"{self.says} {self.turn}", reward, ended, False, info


Answers = Callable[[int, int], list[int]]
"""The ids that the engine samples, given the number of the episode and of the turn, both from 0."""


@dataclass(frozen=True)
class Chat:
    """Another chat template than the tokenizer's own, and its control tokens.

    Attributes:
        template: in Jinja.
        end: the tokenizer's end token.
        tokens: further control tokens.
    """

    template: str
    end: str
    tokens: tuple[str, ...] = ()

    def tokenizer(self, base: Any) -> Any:
        """Return a copy of a tokenizer with this template."""
        tokenizer = deepcopy(base)
        tokenizer.add_tokens([self.end, *self.tokens], special_tokens=True)
        tokenizer.chat_template = self.template
        tokenizer.eos_token = self.end
        return tokenizer


TWO_TOKENS = Chat(
    "{% for message in messages %}{{ '<|turn|>' + message['role'] + '<|message|>' + message['content'] }}"
    "{{ '<|end_message|>' if message['role'] == 'assistant' }}{{ '<|end_turn|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant<|message|>' }}{% endif %}",
    "<|end_turn|>",
    ("<|turn|>", "<|message|>", "<|end_message|>"),
)
"""Ends an answer with two tokens, as the template of Command R7B does."""


@dataclass(frozen=True)
class Scenario:
    """Tasks, the answers to them, and limits.

    Attributes:
        name: what it is about.
        tasks: different ones; each is run by a group of ``copies`` episodes.
        answers: what the engine samples, before it is truncated at a limit.
        copies: episodes per task; 2 or more, since some trainers know groups only.
        max_new_tokens: of a turn.
        max_context: tokens of an episode.
        max_turns: of an episode; None for as many as the environment allows.
        rewritten: whether the environment's history is rewritten every turn, so that a turn has its own prompt.
        tool_role: whether a tool's observation is a message of the role ``tool``.
        chat: the chat template and its tokens; None for the tokenizer's own.
    """

    name: str
    tasks: tuple[Task, ...]
    answers: Answers
    copies: int = 2
    max_new_tokens: int = 8
    max_context: int = 1024
    max_turns: int | None = None
    rewritten: bool = False
    tool_role: bool = False
    chat: Chat | None = None

    def tokenizer(self, base: Any) -> Any:
        """Return the scenario's tokenizer, given the one of the other scenarios."""
        return base if self.chat is None else self.chat.tokenizer(base)

    @property
    def rows(self) -> list[Task]:
        """One task per episode, group after group."""
        return [task for task in self.tasks for _ in range(self.copies)]

    def make_env(self, tokenizer: Any) -> Callable[[Task], Env]:
        """Return what builds a task's environment."""
        if not self.rewritten:
            return Task.make
        from gem.wrappers import get_wrapper_fns

        (wrap,) = get_wrapper_fns("concat_with_action", tokenizer)
        return lambda task: wrap(task.make())


class Sampler(Protocol):
    """What answers a trainer in the place of its engine: :class:`ScriptedPolicy`, or coupled sampling."""

    def respond(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int] = ()) -> Response:
        """Sample a continuation; see :meth:`ScriptedPolicy.respond`."""


class ScriptedPolicy(Engine):
    """A scripted policy: it samples the answers of the scenario, and then the same answers for the same prompts again.

    As the engine of the rollout runner it records which prompt got which answer. What replaces a trainer's engine
    calls :meth:`respond` with nothing but the prompt, which must be one of the runner's, token by token, and the tokens
    at which the engine was told to stop.

    Args:
        scenario: which one.
        end_id: the model's end token, at which every engine stops. It answers a prompt that the runner never had.
        stop_ids: further tokens at which the runner's engine stops.

    Attributes:
        unknown: prompts that the runner never had.
    """

    def __init__(self, scenario: Scenario, end_id: int, stop_ids: Sequence[int] = ()) -> None:
        self.scenario, self.end_id, self.stop_ids = scenario, end_id, stop_ids
        self.unknown: list[list[int]] = []
        self._turns: dict[int, int] = defaultdict(int)
        self._answers: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
        self._count: dict[tuple[int, ...], int] = defaultdict(int)
        self._lock = threading.Lock()

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        """Sample for the rollout runner."""
        ids = self.scenario.answers(episode, self._turns[episode])
        self._turns[episode] += 1
        self._answers[tuple(prompt_ids)].append(ids)
        return self._cut(ids, max_new_tokens, self.stop_ids)

    def respond(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int] = ()) -> Response:
        """Sample for a trainer. Equal prompts of a group get one answer after the other. Any thread may call.

        Args:
            prompt_ids: the prompt.
            max_new_tokens: the limit.
            stop_ids: the tokens at which the trainer's engine was told to stop, beside the model's own end token.
        """
        prompt = tuple(prompt_ids.tolist() if hasattr(prompt_ids, "tolist") else prompt_ids)  # arrays and views have it
        with self._lock:
            answers = self._answers.get(prompt)
            if answers is None:
                self.unknown.append(list(prompt))
                return self._cut([self.end_id], max_new_tokens, stop_ids)
            self._count[prompt] += 1
            return self._cut(answers[(self._count[prompt] - 1) % len(answers)], max_new_tokens, stop_ids)

    def _cut(self, ids: list[int], limit: int, stop_ids: Sequence[int]) -> Response:
        if not ids:
            return Response([], [], "stop")  # an empty generation
        stops = {self.end_id, *stop_ids}
        end = next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))
        kept = ids[: min(end, limit)]
        logprobs = [-0.5 - (token % 64) / 128 - i / 64 for i, token in enumerate(kept)]  # exact in float32
        return Response(kept, logprobs, "stop" if len(kept) == end else "length")


def scenarios(tokenizer: Any) -> list[Scenario]:
    """Return all scenarios, in the tokens of a tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer of byte-level BPE with an end token, and a chat template with a tool role.
    """
    if SCENARIO_ENV not in ENV_REGISTRY:
        register(SCENARIO_ENV, ScenarioEnv)
    end = tokenizer.eos_token_id

    def ids(text: str, ended: bool = True) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"] + ([end] if ended else [])

    def in_bytes(text: str) -> list[int]:
        return tokenizer.convert_tokens_to_ids([_BYTES[byte] for byte in text.encode()])

    def task(seed: int = 0, **options: Any) -> Task:
        return Task(SCENARIO_ENV, seed, options)

    def words(episode: int, turn: int) -> list[int]:
        return ids(["yes", "no", "maybe", "yes no", "so", "no no", "yes yes", "so so"][(episode + 3 * turn) % 8])

    def at_turn(special: int, answer: list[int], episode: int, turn: int) -> list[int]:
        return answer if turn == special else words(episode, turn)

    def split(episode: int, turn: int) -> list[int]:
        halves = in_bytes("é")
        return {1: [halves[0], end], 2: [*halves, end]}.get(turn) or words(episode, turn)

    def thoughts(episode: int, turn: int) -> list[int]:
        return [*ids("<think>no</think>", ended=False), *words(episode, turn)]

    def equal(episode: int, turn: int) -> list[int]:
        return ids("yes")

    def of_member(episode: int, turn: int, member: int, special: int, answer: list[int]) -> list[int]:
        return answer if (episode, turn) == (member, special) else words(episode, turn)

    def with_two_tokens(episode: int, turn: int) -> list[int]:
        own = TWO_TOKENS.tokenizer(tokenizer)
        ends = own.convert_tokens_to_ids(["<|end_message|>", "<|end_turn|>"])
        return [*words(episode, turn)[:-1], *ends]

    def never_ending(episode: int, turn: int) -> list[int]:
        return [*words(episode, turn), *ids("\n"), *words(episode, turn + 1)]

    base = Chat(tokenizer.chat_template, "<|end_of_text|>")
    bad = ids("bad")
    failing = partial(task, fails_on="bad")
    long = ids("yes no " * 20, ended=False)
    specials = [i for i in tokenizer.all_special_ids if i != end]
    found = task(length=5, says="<information>\n42\n</information>", tool_turns=[1, 2, 3])
    spelled = "<|im_end|>\n<|im_start|>user\n"
    return [
        Scenario("one clean turn", (task(length=1),), words),
        Scenario("several turns", (task(),), words),
        Scenario("a truncated turn in the middle", (task(),), partial(at_turn, 1, long)),
        Scenario("a truncated last turn", (task(),), partial(at_turn, 3, long)),
        Scenario("a word in unusual tokens", (task(),), partial(at_turn, 1, [*in_bytes("maybe"), end])),
        Scenario("a character split over tokens", (task(),), split),
        Scenario("an empty answer", (task(),), partial(at_turn, 1, [end])),
        Scenario("special tokens in an answer", (task(),), partial(at_turn, 1, [*specials, *ids("x")])),
        Scenario("special tokens' text in an answer", (task(),), partial(at_turn, 1, [*in_bytes(spelled[:6]), end])),
        Scenario("special tokens' text in an observation", (task(says=spelled),), words),
        Scenario("the context is full", (task(length=50),), words, max_context=128),
        Scenario("the limit of turns", (task(length=50),), words, max_turns=3),
        Scenario("an environment that always fails", (task(fails_at=3),), words),
        Scenario("a failure in reset", (task(), task(seed=1, fails_at=0)), words, copies=4),
        Scenario(
            "a failure in the first turn", (failing(),), partial(of_member, member=2, special=0, answer=bad), copies=4
        ),
        Scenario(
            "a failure in a later turn", (failing(),), partial(of_member, member=1, special=2, answer=bad), copies=4
        ),
        Scenario(
            "a member that fails",
            (failing(seed=1, length=2), failing(seed=2, length=5)),
            partial(of_member, member=5, special=1, answer=bad),
            copies=4,
        ),
        Scenario("an observation that is too long", (task(), task(seed=1, says="on " * 2000)), words),
        Scenario("an empty generation", (task(),), partial(of_member, member=1, special=1, answer=[]), copies=4),
        Scenario(
            "an empty generation at first", (task(),), partial(of_member, member=1, special=0, answer=[]), copies=4
        ),
        Scenario("a tool's answer", (found,), words),
        Scenario("a tool's answer in the tool role", (found,), partial(at_turn, 2, long), tool_role=True),
        Scenario("a group of 8", (task(seed=7),), words, copies=8),
        Scenario("two groups", (task(seed=1, length=2), task(seed=2, length=5)), words, copies=4),
        Scenario("1,000 turns", (task(length=1000),), words, max_context=32_768),
        Scenario("a rewritten history", (task(),), words, rewritten=True),
        Scenario("equal returns", (task(seed=1, length=1), task(seed=2, length=1)), equal, copies=4),
        Scenario("thoughts in an answer", (task(),), thoughts, max_new_tokens=32),
        Scenario("an end of two tokens", (task(),), with_two_tokens, chat=TWO_TOKENS),
        Scenario("an end token that is not the tokenizer's", (task(),), never_ending, chat=base),
    ]


def _byte_names() -> dict[int, str]:
    """Return the character by which byte-level BPE writes each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    names = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in names)
    return {**names, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


_BYTES = _byte_names()
