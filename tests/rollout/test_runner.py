"""The runner: the token contract, limits and errors."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from gem.core import Env, EnvWrapper
from gem.registry import ENV_REGISTRY, register
from gem.rollout import (
    ChatRenderer,
    Engine,
    EpisodeRunner,
    Limits,
    Response,
    run_episode,
    run_episodes,
    run_turns,
    shared_runner,
)
from gem.tasks import Task, make_tasks
from gem.testing import ScriptedEngine
from gem.tools.base_tool import BaseTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper
from gem.wrappers import ObservationWrapper, get_wrapper_fns

TASK = Task("game:GuessTheNumber-v1-easy", seed=0)  # the number is 7
EASY = "game:GuessTheNumber-v1-easy"


@pytest.fixture
def renderer(tokenizer):
    return ChatRenderer(tokenizer)


def say(tokenizer, text, end=True, logprob=None):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if end else [])
    return Response(ids, None if logprob is None else [logprob] * len(ids), "stop" if end else "length")


def play(task, script, renderer, limits=None, **kwargs):
    engine = script if isinstance(script, Engine) else ScriptedEngine(script)
    return asyncio.run(run_episode(task, engine, renderer, limits, **kwargs))


class Plain(Env):
    """Says what it is told to say; an episode has ten turns."""

    def __init__(self, on_step=lambda env, action: None, on_reset=lambda env: None, blocking=False):
        super().__init__()
        self._on_step, self._on_reset, self.blocking = on_step, on_reset, blocking
        self.turn, self.closed = 0, 0

    def reset(self, seed=None):
        super().reset(seed)
        self._on_reset(self)
        return "begin", {}

    def step(self, action):
        self.turn += 1
        return self._on_step(self, action) or (f"turn {self.turn}", 1.0, False, self.turn == 10, {})

    def close(self):
        self.closed += 1


def test_sampled_ids_are_kept_verbatim_even_where_text_would_encode_otherwise(tokenizer, renderer):
    letters = [tokenizer.convert_tokens_to_ids(c) for c in "\\boxed{3}"]  # a split that encoding never gives
    canonical = tokenizer("\\boxed{3}", add_special_tokens=False)["input_ids"]
    assert letters != canonical
    sampled = [*letters, tokenizer.eos_token_id]
    first, second = play(TASK, [sampled], renderer, Limits(max_turns=2)).turns
    assert first.response_ids == sampled
    assert first.action == "\\boxed{3}"
    assert second.prompt_ids[: len(first.prompt_ids) + len(sampled)] == first.prompt_ids + sampled


def test_the_action_has_no_special_tokens(tokenizer, renderer):
    episode = play(TASK, [say(tokenizer, "a<|im_start|>b")], renderer, Limits(max_turns=1))
    assert episode.turns[0].action == "ab"


def test_each_prompt_is_the_last_prompt_and_answer_and_a_bridge(tokenizer, renderer):
    episode = play(TASK, [say(tokenizer, f"\\boxed{{{n}}}") for n in (1, 2, 3, 4)], renderer)
    for before, after in zip(episode.turns, episode.turns[1:], strict=False):
        bridge = tokenizer(
            f"\n<|im_start|>user\n{before.observation}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
        )["input_ids"]
        assert after.prompt_ids == before.prompt_ids + before.response_ids + bridge


def test_the_ids_of_clean_turns_are_those_of_a_full_render(tokenizer, renderer):
    episode = play(TASK, [say(tokenizer, f"\\boxed{{{n}}}") for n in (1, 2, 3, 4)], renderer)
    messages = [{"role": "user", "content": episode.first_observation}]
    for turn in episode.turns:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert turn.prompt_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        messages += [{"role": "assistant", "content": turn.action}, {"role": "user", "content": turn.observation}]


def test_a_turn_cut_by_length_is_closed_by_an_end_token_that_is_masked(tokenizer, renderer):
    episode = play(TASK, [say(tokenizer, "\\boxed{1}", end=False), say(tokenizer, "\\boxed{2}")], renderer, Limits(2))
    cut, following = episode.turns
    assert following.prompt_ids[len(cut.prompt_ids) + len(cut.response_ids)] == tokenizer.eos_token_id
    sequence = episode.as_sequence()
    assert sequence.completion_ids[sequence.turn_ends[0] + 1] == tokenizer.eos_token_id
    assert sequence.mask[sequence.turn_ends[0] + 1] == 0


def test_log_probabilities_and_rewards_reach_the_sequence(tokenizer, renderer):
    script = [say(tokenizer, "\\boxed{1}", logprob=-0.5), say(tokenizer, "\\boxed{7}", logprob=-0.25)]
    sequence = play(TASK, script, renderer).as_sequence()
    assert sequence.completion_ids[-1] == tokenizer.eos_token_id
    assert sequence.mask[-1] == 1
    assert set(sequence.logprobs[sequence.mask == 0]) == {0.0}
    assert set(sequence.logprobs[sequence.mask == 1]) == {-0.5, -0.25}
    assert sequence.rewards[sequence.turn_ends].tolist() == [0.0, 1.0]
    assert sequence.rewards.sum() == 1.0


def test_a_won_episode_is_not_truncated(tokenizer, renderer):
    episode = play(TASK, [say(tokenizer, "\\boxed{7}")], renderer)
    assert (episode.success, episode.truncation, len(episode.turns)) == (True, None, 1)


@pytest.mark.parametrize("limit", [None, 2])
def test_the_turn_limit_truncates(tokenizer, renderer, limit):
    episode = play(TASK, [say(tokenizer, "\\boxed{1}")], renderer, Limits(max_turns=limit))
    assert (episode.truncation, len(episode.turns)) == ("turns", limit or 4)


def test_the_token_limit_of_a_turn_reaches_the_engine(tokenizer, renderer):
    episode = play(TASK, [say(tokenizer, "x" * 99)], renderer, Limits(max_turns=1, max_new_tokens=5))
    assert len(episode.turns[0].response_ids) == 5
    assert episode.turns[0].finish_reason == "length"


def test_an_episode_stops_before_its_context_overflows(tokenizer, renderer):
    first = len(renderer.first("begin"))
    for extra in range(1, 60):
        limits = Limits(max_new_tokens=8, max_context=first + extra)
        episode = play(TASK, [say(tokenizer, "hi there")], renderer, limits, make_env=lambda task: Plain())
        assert len(episode.turns[-1].prompt_ids) + len(episode.turns[-1].response_ids) <= first + extra
        assert episode.truncation == "context"


def test_a_first_observation_that_does_not_fit_ends_its_own_episode_only(tokenizer, renderer):
    class Wordy(Plain):
        def reset(self, seed=None):
            super().reset(seed)
            return "word " * (50 * seed), {}

    engine = ScriptedEngine([say(tokenizer, "hello there")])
    limits = Limits(max_context=60, max_turns=2)
    tasks = make_tasks(EASY, [0, 1])
    well, overlong = asyncio.run(run_episodes(tasks, engine, renderer, limits, lambda task: Wordy()))
    assert (well.truncation, len(well.turns), well.valid) == ("turns", 2, True)
    assert (overlong.truncation, overlong.valid) == ("overlong", False)
    assert "the first observation of game:GuessTheNumber-v1-easy (seed 1) takes " in overlong.error
    assert "the context holds 60" in overlong.error
    assert overlong.first_observation == "word " * 50
    assert engine.prompts[1] == [renderer.first("")]  # a token is sampled for a row, of what fits
    assert overlong.as_sequence().mask.tolist() == [1]


def test_nothing_is_sampled_in_a_context_that_does_not_hold_an_empty_message(tokenizer, renderer):
    engine = ScriptedEngine([say(tokenizer, "x")])
    episode = play(TASK, engine, renderer, Limits(max_context=3))
    assert (episode.truncation, episode.turns, engine.prompts) == ("overlong", [], {})


def test_a_completion_never_grows_over_its_limit(tokenizer, renderer):
    rambling = [[tokenizer.convert_tokens_to_ids("x")] * 1000]

    def play_within(limit):
        return play(
            TASK, rambling, renderer, Limits(3, max_new_tokens=6, max_completion=limit), make_env=lambda task: Plain()
        )

    whole = play_within(None)
    ends = whole.as_sequence().turn_ends + 1
    for limit in range(1, ends[-1] + 2):
        episode = play_within(limit)
        assert len(episode.as_sequence().completion_ids) <= limit
        assert len(episode.turns[0].response_ids) == min(6, limit)
        assert episode.truncation == ("turns" if len(episode.turns) == 3 else "context")
    assert episode == whole


def test_a_limit_on_completions_does_not_count_prompts_that_are_rewritten(tokenizer, renderer):
    (wrap,) = get_wrapper_fns("concat_with_action", tokenizer)
    limits = Limits(4, max_new_tokens=8, max_completion=8)
    episode = play(TASK, [say(tokenizer, "x")], renderer, limits, make_env=lambda task: wrap(Plain()))
    assert not episode.append_only
    assert episode.truncation == "turns"
    assert len(episode.turns) == 4


def test_megabytes_of_text_do_not_hold_up_other_episodes(tokenizer, renderer):
    """The event loop goes on turning while they are put into tokens."""
    long_text = "all work and no play " * 50_000
    env = Plain(lambda env, action: (long_text, 0.0, False, env.turn == 2, {}))

    async def run():
        longest, last = 0.0, time.perf_counter()
        job = asyncio.ensure_future(
            run_episode(TASK, ScriptedEngine([say(tokenizer, "x")]), renderer, Limits(), lambda task: env)
        )
        while not job.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        started = time.perf_counter()
        renderer.first(long_text)
        return longest, time.perf_counter() - started, job.result()

    longest, rendering, episode = asyncio.run(run())
    assert len(episode.turns) == 2
    assert longest < rendering / 2


def test_an_aborted_answer_ends_the_episode_without_a_step(tokenizer, renderer):
    script = [say(tokenizer, "\\boxed{1}"), Response([5], None, "abort")]
    episode = play(TASK, script, renderer)
    assert (episode.truncation, len(episode.turns)) == ("abort", 2)
    assert (episode.turns[-1].observation, episode.turns[-1].reward) == ("", 0.0)


@pytest.mark.parametrize("given", [(5, 6, 2), np.array([5, 6, 2])])
def test_ids_may_come_in_any_sequence_and_are_kept_as_integers(renderer, given):
    turn = play(TASK, [Response(given, None, "stop")], renderer, Limits(1)).turns[0]
    assert turn.response_ids == [5, 6, 2]
    assert {type(token) for token in turn.response_ids} == {int}


def test_log_probabilities_that_do_not_match_the_tokens_are_refused(renderer):
    with pytest.raises(RuntimeError, match="ScriptedEngine returned 1 logprobs for 3 tokens"):
        play(TASK, [Response([5, 6, 2], [-0.1], "stop")], renderer)


def test_an_engine_that_ignores_the_limit_is_held_to_it(renderer):
    class Chatty(Engine):
        async def generate(self, prompt_ids, max_new_tokens, *, episode=0):
            return Response([5] * 50, [-1.0] * 50, "stop")

    turn = play(TASK, Chatty(), renderer, Limits(1, max_new_tokens=4)).turns[0]
    assert (turn.response_ids, turn.logprobs, turn.finish_reason) == ([5] * 4, [-1.0] * 4, "length")


@pytest.mark.parametrize("reason", ["stop", "length", "abort"])
def test_an_empty_generation_aborts_the_episode(tokenizer, renderer, reason):
    script = [say(tokenizer, "\\boxed{1}"), Response([], None, reason)]
    episode = play(TASK, script, renderer)
    assert (episode.truncation, len(episode.turns), episode.valid) == ("abort", 1, False)
    episode = play(TASK, script[1:], renderer)
    assert (episode.truncation, episode.turns) == ("abort", [])


def fail(env, action):
    if env.turn == 2:
        raise RuntimeError("the server is gone")


def exit_process(env, action):
    raise SystemExit(3)


def not_text(env, action):
    return 5, 0.0, False, False, {}


def not_finite(env, action):
    return "x", float("nan"), False, False, {}


def not_a_step(env, action):
    return "x", 0.0


def no_tokens(env, action):
    return "\ud800", 0.0, False, False, {}


def no_tokens_in_the_suffix(env, action):
    return "x", 0.0, False, False, {"suffix": "\ud800"}


def info_is_none(env, action):
    return "x", 0.0, False, False, None


def info_is_no_json(env, action):
    return "x", 0.0, False, False, {"seen": {1}}


def cancelled(env, action):
    raise asyncio.CancelledError


def own_timeout(env, action):
    raise TimeoutError


class Unspeakable(Exception):
    """An exception whose text cannot be had."""

    def __str__(self):
        raise SystemExit(3)

    __repr__ = __str__


def unspeakable(env, action):
    raise Unspeakable


def says_that_it_ended(env, action):
    return "x", 0.0, "False", False, {}


def reward_in_text(env, action):
    return "x", "1.0", False, False, {}


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(
    ("on_step", "turns", "message"),
    [
        (fail, 2, "RuntimeError: the server is gone"),
        (exit_process, 1, "SystemExit: 3"),
        (not_text, 1, "TypeError: Plain.step returned 5, a int, as observation, not a str"),
        (not_finite, 1, "ValueError: Plain.step returned the reward nan"),
        (
            not_a_step,
            1,
            "TypeError: Plain.step returned ('x', 0.0), not (observation, reward, terminated, truncated, info)",
        ),
        (no_tokens, 1, "UnicodeEncodeError"),
        (no_tokens_in_the_suffix, 1, "UnicodeEncodeError"),
        (info_is_none, 1, "TypeError: Plain.step returned None, a NoneType, as info, not a dict"),
        (info_is_no_json, 1, "info holds {1}, a set"),
        (cancelled, 1, "CancelledError"),
        (own_timeout, 1, "TimeoutError"),
        (unspeakable, 1, "Unspeakable: (its __str__ raised SystemExit)"),
        (says_that_it_ended, 1, "TypeError: Plain.step returned 'False', a str, as terminated, not a bool"),
        (reward_in_text, 1, "TypeError: Plain.step returned '1.0', a str, as reward"),
    ],
)
def test_an_environment_that_fails_ends_its_own_episode_only(tokenizer, renderer, on_step, turns, message, blocking):
    def make_env(task):
        return Plain(on_step, blocking=blocking) if task.seed == 1 else Plain(blocking=blocking)

    engine = ScriptedEngine([say(tokenizer, "hi")])
    well, failed = asyncio.run(run_episodes(make_tasks(EASY, [0, 1]), engine, renderer, make_env=make_env))
    assert (well.truncation, len(well.turns)) == ("turns", 10)
    assert (failed.truncation, len(failed.turns)) == ("error", turns)
    assert message in failed.error
    assert failed.total_reward == turns - 1


def test_an_environment_that_cannot_begin_still_gives_a_sampled_token(tokenizer, renderer):
    def refuse(env):
        raise OSError("no display")

    for make_env in (lambda task: Plain(on_reset=refuse), lambda task: refuse(None)):
        episode = play(TASK, [say(tokenizer, "hello there")], renderer, make_env=make_env)
        assert (episode.truncation, episode.error) == ("error", "OSError: no display")
        assert len(episode.turns[0].response_ids) == 1
        assert episode.as_sequence().mask.tolist() == [1]


@pytest.mark.parametrize("blocking", [False, True])
def test_an_error_is_of_limited_length(tokenizer, renderer, blocking):
    def shout(env, action):
        raise ValueError("a" * 10**7)

    script = [say(tokenizer, "hi")]
    episode = play(TASK, script, renderer, make_env=lambda task: Plain(shout, blocking=blocking))
    assert episode.error.startswith("ValueError: aaa")
    assert len(episode.error) < 5000


class Withholding(Plain):
    """An attribute of it cannot be read from some time on."""

    withheld = None

    def __init__(self, name, since_reset, blocking):
        super().__init__(blocking=blocking)
        self._name = name
        if not since_reset:
            self.withheld = name

    def reset(self, seed=None):
        self.withheld = self._name
        return super().reset(seed)

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "__dict__").get("withheld"):
            raise Unspeakable
        return super().__getattribute__(name)


@pytest.mark.parametrize("name", ["asynchronous", "observation_form", "blocking", "reset", "step", "close"])
@pytest.mark.parametrize("since_reset", [False, True])
@pytest.mark.parametrize("blocking", [False, True])
def test_attributes_that_cannot_be_read_end_their_own_episode_only(tokenizer, renderer, name, since_reset, blocking):
    def make_env(task):
        return Withholding(name, since_reset, blocking) if task.seed == 1 else Plain(blocking=blocking)

    engine = ScriptedEngine([say(tokenizer, "hi")])
    well, failed = asyncio.run(run_episodes(make_tasks(EASY, [0, 1]), engine, renderer, Limits(2), make_env))
    assert (well.truncation, len(well.turns)) == ("turns", 2)
    read_once = {"asynchronous", "observation_form", "blocking", "reset"}
    if name == "step" or (name in read_once and not since_reset):
        assert failed.truncation == "error"
        assert "Unspeakable: (its __str__ raised SystemExit)" in failed.error
    else:
        assert failed.truncation == "turns"


def test_an_environment_that_hangs_past_its_deadline_ends_its_own_episode_only(tokenizer, renderer):
    woken = threading.Event()

    def hang(env, action):
        woken.wait(20)

    tasks = make_tasks(EASY, range(8))
    limits = Limits(max_turns=3, step_timeout=0.2, max_threads=2)
    engine = ScriptedEngine([say(tokenizer, "hi")])
    since = time.perf_counter()
    episodes = asyncio.run(
        run_episodes(
            tasks,
            engine,
            renderer,
            limits,
            lambda task: Plain(hang if task.seed < 4 else lambda *_: None, blocking=True),
        )
    )
    assert time.perf_counter() - since < 10
    woken.set()
    assert [e.truncation for e in episodes] == ["error"] * 4 + ["turns"] * 4
    assert episodes[0].error == "no answer within 0.2 s"


class Awaited(Plain):
    """Has coroutines; its steps wait for those of all others, or do what they are told."""

    asynchronous = True

    def __init__(self, wait=None):
        super().__init__()
        self._wait = wait

    async def reset_async(self, seed=None):
        await asyncio.sleep(0)
        return self.reset(seed)

    async def step_async(self, action):
        if self._wait is not None:
            await self._wait()
        return self.step(action)


def test_coroutines_of_environments_are_awaited_side_by_side(tokenizer, renderer):
    async def main():
        inside, all_inside = [], asyncio.Event()

        async def wait():
            inside.append(threading.get_ident())
            if len(inside) == 200:
                all_inside.set()
            await asyncio.wait_for(all_inside.wait(), 20)

        engine = ScriptedEngine([say(tokenizer, "hi")])
        limits = Limits(max_turns=1, step_timeout=30)
        episodes = await run_episodes(make_tasks(EASY, range(200)), engine, renderer, limits, lambda _: Awaited(wait))
        assert set(inside) == {threading.get_ident()}
        return episodes

    assert [episode.turns[0].reward for episode in asyncio.run(main())] == [1.0] * 200


def test_coroutines_that_fail_end_their_own_episode_only(tokenizer, renderer):
    async def raises():
        raise OSError("gone")

    async def cancels():
        raise asyncio.CancelledError

    async def quits():
        raise SystemExit(3)

    async def hangs():
        await asyncio.sleep(99)

    async def ignores():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(99)
        await asyncio.sleep(0.01)
        raise ValueError("too late")

    def is_none():
        raise SystemExit(4)

    waits = [raises, cancels, hangs, ignores, quits, is_none, None]
    engine = ScriptedEngine([say(tokenizer, "hi")])
    limits = Limits(max_turns=2, step_timeout=0.1)
    episodes = asyncio.run(
        run_episodes(make_tasks(EASY, range(7)), engine, renderer, limits, lambda task: Awaited(waits[task.seed]))
    )
    late = "no answer within 0.1 s"
    errors = ["OSError: gone", "CancelledError: ", late, late, "SystemExit: 3", "SystemExit: 4", None]
    assert [episode.error for episode in episodes] == errors
    assert [episode.truncation for episode in episodes] == ["error"] * 6 + ["turns"]


class NotAsync(Plain):
    """Its coroutines are none."""

    asynchronous = True

    def reset_async(self, seed=None):
        return self.reset(seed)

    step_async = Plain.step


def test_coroutines_that_are_none_end_their_own_episode_only(tokenizer, renderer):
    engine = ScriptedEngine([say(tokenizer, "hi")])
    envs = [NotAsync, Awaited]
    episodes = asyncio.run(
        run_episodes(make_tasks(EASY, range(2)), engine, renderer, Limits(2), lambda task: envs[task.seed]())
    )
    assert [episode.truncation for episode in episodes] == ["error", "turns"]
    assert episodes[0].error.startswith("AttributeError: 'tuple' object has no attribute '__await__'")


FORKING = """
import asyncio, os, sys
sys.path[:0] = {path!r}
import test_runner
from test_runner import *

def fork(env=None, action=None):
    pid = os.fork()
    if pid == 0:
        {child}
    else:
        os.waitpid(pid, 0)

async def fork_and_wait():
    fork()

class Renderer:
    first = encode = lambda self, text: [1]
    bridge = lambda self, ids, text, role=None, first=None: [3]
    role_of = lambda self, info: "user"
    parse = lambda self, ids, prompt: type("Answer", (), {{"action": "x", "full_text": None}})

envs = {{"loop": Plain(fork), "thread": Plain(fork, blocking=True), "async": Awaited(fork_and_wait)}}
make_env = lambda task: envs[{where!r}] if task.seed else Plain()
run = run_episodes(make_tasks(EASY, range(2)), ScriptedEngine([[5]]), Renderer(), Limits(3, step_timeout=20), make_env)
print([(episode.truncation, len(episode.turns)) for episode in asyncio.run(run)], flush=True)
"""


@pytest.mark.parametrize("child", ["return", "raise ValueError", "sys.exit()"])
@pytest.mark.parametrize("where", ["loop", "thread", "async"])
def test_a_child_that_an_environment_forks_does_not_come_back_from_its_step(where, child):
    code = FORKING.format(path=sys.path, child=child, where=where)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[('turns', 3), ('turns', 3)]\n", done.stderr


@pytest.fixture
def faulty_ids():
    """Register environments that are stepped in other processes, and break them in different ways."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "vector"))  # other processes import it, too
    from faulty_envs import ComputesFaulty

    ids = {}
    for table, name in [("break", "close"), ("break", "hold"), ("break", "fork"), ("unsendable", "load"), (None, "")]:
        ids[name] = f"test:Faulty{name.title()}-v0"
        options = {"name": name, "table": table} if table else {"name": "text", "table": "harmless"}
        register(ids[name], ComputesFaulty, **options)
    yield ids
    for env_id in ids.values():
        del ENV_REGISTRY[env_id]


def test_what_breaks_its_process_ends_its_own_episode_only(tokenizer, renderer, faulty_ids):
    engine = ScriptedEngine([say(tokenizer, "hi")])
    limits = Limits(max_turns=3, step_timeout=0.5)
    tasks = [Task(env_id, seed=0) for env_id in faulty_ids.values()]
    *failed, well = asyncio.run(run_episodes(tasks, engine, renderer, limits))
    assert (well.truncation, len(well.turns), well.error) == ("turns", 3, None)
    assert [episode.error for episode in failed] == [
        "it closed the file descriptors of its process",
        "no answer within 0.5 s",
        "its process ended with code 0",
        "what it returned cannot be read: SystemExit: 3",
    ]


def test_cancelling_a_run_cancels_the_coroutine_and_closes_the_environment(tokenizer, renderer):
    told, envs = [], []

    async def main():
        stepping = asyncio.Event()

        async def wait():
            stepping.set()
            try:
                await asyncio.sleep(99)
            except asyncio.CancelledError:
                told.append("cancelled")
                raise

        def make(task):
            envs.append(Awaited(wait))
            return envs[-1]

        engine = ScriptedEngine([say(tokenizer, "hi")])
        run = asyncio.ensure_future(run_episodes(make_tasks(EASY, [0]), engine, renderer, None, make))
        await stepping.wait()
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        assert told == ["cancelled"]  # not only when the event loop ends

    asyncio.run(main())
    assert envs[0].closed == 1


def test_cancelling_a_run_twice_closes_the_environment_once(tokenizer, renderer):
    closing = threading.Event()
    envs = []

    class SlowToClose(Plain):
        def close(self):
            closing.set()
            time.sleep(0.3)
            super().close()

    def make(task):
        envs.append(SlowToClose(blocking=True))
        return envs[-1]

    async def main():
        engine = ScriptedEngine([say(tokenizer, "hi")])
        run = asyncio.ensure_future(run_episodes(make_tasks(EASY, [0]), engine, renderer, Limits(1), make))
        while not closing.is_set():
            await asyncio.sleep(0.01)
        for _ in range(2):
            run.cancel()
            await asyncio.sleep(0.05)
        await asyncio.gather(run, return_exceptions=True)

    asyncio.run(main())
    time.sleep(0.5)
    assert envs[0].closed == 1


def test_blocking_environments_are_stepped_side_by_side_while_the_event_loop_runs(tokenizer, renderer):
    together = threading.Barrier(8, timeout=20)
    all_inside, loop_runs = threading.Event(), threading.Event()

    def wait(env, action):
        together.wait()  # fails unless all eight are in their step at once
        all_inside.set()
        assert loop_runs.wait(20)

    async def main():
        async def set_later():
            while not all_inside.is_set() and not together.broken:
                await asyncio.sleep(0.001)
            loop_runs.set()

        engine = ScriptedEngine([say(tokenizer, "hi")])
        tasks = make_tasks(EASY, range(8))
        playing = run_episodes(tasks, engine, renderer, Limits(1), lambda task: Plain(wait, blocking=True))
        return (await asyncio.gather(playing, set_later()))[0]

    assert [e.truncation for e in asyncio.run(main())] == ["turns"] * 8


class Flaky(Plain):
    """Fails as often as it is told, in its constructor or in reset."""

    made: ClassVar[list] = []

    def __init__(self, failures, where="reset", blocking=False, **options):
        super().__init__(blocking=blocking, **options)
        self.fails = len(Flaky.made) < failures
        self.where = where
        Flaky.made.append(self)
        if self.fails and where == "constructor":
            raise OSError("no display")

    def reset(self, seed=None):
        if self.fails:
            raise OSError("no display")
        return super().reset(seed)


@pytest.fixture
def flaky():
    Flaky.made = []
    return Flaky


def test_nothing_is_sampled_where_the_template_refuses_an_empty_message(tokenizer, flaky):
    own = deepcopy(tokenizer)
    refuse = "{% if message['content'] == '' %}{{ raise_exception('no query') }}{% endif %}{{"
    own.chat_template = own.chat_template.replace("{{", refuse, 1)
    episode = play(TASK, [[5]], ChatRenderer(own), Limits(retries=0), make_env=lambda task: flaky(9))
    assert (episode.truncation, episode.error, episode.turns) == ("error", "OSError: no display", [])


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("where", ["reset", "constructor"])
@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("failures", [0, 1, 2, 9])
def test_an_environment_that_fails_before_the_first_token_is_begun_again(
    tokenizer, renderer, flaky, failures, retries, where, blocking, caplog
):
    engine = ScriptedEngine([say(tokenizer, "hi")])
    task = Task("test:NotRegistered-v0", 0)
    limits = Limits(max_turns=2, retries=retries)
    episode = play(task, engine, renderer, limits, make_env=lambda task: flaky(failures, where, blocking))
    assert episode.retries == min(failures, retries) == caplog.text.count("starting ")
    assert len(flaky.made) == episode.retries + 1
    if failures <= retries:
        assert (episode.truncation, len(episode.turns), episode.error) == ("turns", 2, None)
        assert len(engine.prompts[0]) == 2
    else:
        assert (episode.truncation, episode.error) == ("error", "OSError: no display")
        assert engine.prompts[0] == [renderer.first("")]
    if where == "reset":
        assert [env.closed for env in flaky.made] == [1] * len(flaky.made)


def test_an_environment_that_fails_later_is_not_begun_again(tokenizer, renderer, flaky):
    episode = play(TASK, [say(tokenizer, "x")], renderer, make_env=lambda task: flaky(0, on_step=fail))
    assert (episode.truncation, len(episode.turns), episode.retries, len(flaky.made)) == ("error", 2, 0, 1)


def test_what_is_wrong_with_the_set_up_is_not_tried_again(tokenizer, renderer):
    made = []

    def make_env(task):
        made.append(task)
        raise ValueError("no such level")

    with pytest.raises(ValueError, match="no such level"):
        play(TASK, [say(tokenizer, "x")], renderer, make_env=make_env)
    assert len(made) == 1


def test_the_limit_of_retries_may_be_zero_and_not_less():
    assert Limits(retries=0).retries == 0
    with pytest.raises(ValueError, match=r"Limits.retries must not be negative, got -1"):
        Limits(retries=-1)


def test_thoughts_are_not_given_to_the_environment_and_stay_on_the_turn(tokenizer, renderer):
    given = []
    env = Plain(lambda env, action: given.append(action))
    said = "<think>five? six?</think>\n\n\\boxed{7}"
    (turn,) = play(TASK, [say(tokenizer, said)], renderer, Limits(1), make_env=lambda task: env).turns
    assert given == [turn.action] == ["\\boxed{7}"]
    assert turn.full_text.startswith(said)
    assert turn.response_ids == say(tokenizer, said).token_ids
    (turn,) = play(TASK, [say(tokenizer, "\\boxed{7}")], renderer, Limits(1)).turns
    assert (turn.action, turn.full_text) == ("\\boxed{7}", None)


def test_the_renderer_sees_the_first_observation_at_every_bridge(tokenizer):
    seen = []

    class Watched(ChatRenderer):
        def bridge(self, response_ids, observation, role="user", first=None):
            seen.append((observation, first))
            return super().bridge(response_ids, observation, role, first)

    play(TASK, [say(tokenizer, "x")], Watched(tokenizer), Limits(3), make_env=lambda task: Plain())
    assert seen == [("turn 1", "begin"), ("turn 2", "begin")]


def test_every_environment_is_closed_once_whatever_happened(tokenizer, renderer):
    made = []

    def make_env(task):
        made.append(Plain(fail if task.seed else lambda *_: None))
        return made[-1]

    asyncio.run(
        run_episodes(make_tasks(EASY, [0, 1]), ScriptedEngine([say(tokenizer, "x")]), renderer, make_env=make_env)
    )
    assert [env.closed for env in made] == [1, 1]


def test_an_engine_that_fails_stops_the_run_and_closes_the_environments(renderer):
    made = []

    def make_env(task):
        made.append(Plain())
        return made[-1]

    def broken(episode, prompt):
        raise ConnectionError("the server is gone")

    with pytest.raises(ConnectionError):
        asyncio.run(run_episodes(make_tasks(EASY, range(4)), ScriptedEngine(broken), renderer, make_env=make_env))
    assert all(env.closed for env in made)


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (Task("game:GuesTheNumber-v1", 0), ValueError, "The nearest: game:GuessTheNumber-v1"),
        (Task(EASY, 0, {"max_number": 20, "colour": 1}), TypeError, "takes no argument 'colour'"),
    ],
)
def test_a_task_that_does_not_exist_is_an_error_and_not_an_episode(renderer, task, error, message):
    with pytest.raises(error, match=message):
        play(task, [[5]], renderer)


def test_a_constructor_that_fails_otherwise_ends_its_own_episode_only(tokenizer, renderer):
    def make_env(task):
        return json.loads("no answer") if task.seed else Plain()

    engine = ScriptedEngine([say(tokenizer, "hi")])
    well, failed = asyncio.run(run_episodes(make_tasks(EASY, [0, 1]), engine, renderer, make_env=make_env))
    assert (well.truncation, failed.truncation) == ("turns", "error")
    assert "JSONDecodeError" in failed.error


def test_a_thousand_turns_are_one_sequence(tokenizer, renderer):
    def go_on(env, action):
        return f"{env.turn}", 0.5, env.turn == 1000, False, {}

    episode = play(TASK, [say(tokenizer, "hi")], renderer, make_env=lambda task: Plain(go_on))
    sequence = episode.as_sequence()
    assert len(sequence.turn_ends) == 1000
    assert sequence.rewards.sum() == 500
    assert sequence.mask.sum() == episode.sampled_tokens


def test_the_same_task_and_tokens_give_the_same_episode_at_any_concurrency(tokenizer, renderer):
    tasks = [Task(env_id, seed) for env_id in (EASY, "game:Mastermind-v0-easy") for seed in range(6)]

    def script(episode, prompt):
        return say(tokenizer, f"\\boxed{{{len(prompt) % 6 + 1} {episode % 6 + 1}}}", logprob=-0.1)

    def run(max_concurrent):
        return asyncio.run(run_episodes(tasks, ScriptedEngine(script), renderer, max_concurrent=max_concurrent))

    assert run(None) == run(1) == run(5)


class Half(BaseTool):
    """Says half of seven."""

    tool_type = "half"

    def instruction_string(self):
        return "Write <half/>."

    def find_action(self, action):
        place = action.find("<half/>")
        return place if place >= 0 else None

    def execute_action(self, action):
        return True, False, "3.5", action


TOOL_TURNS = ("<half/>", "<half/>", "\\boxed{1}", "<half/>", "\\boxed{7}")


def play_with_tools(tokenizer, wrap=lambda env: env, **options):
    script = [say(tokenizer, text) for text in TOOL_TURNS]
    renderer = ChatRenderer(tokenizer, **options)
    return play(TASK, script, renderer, make_env=lambda task: wrap(ToolEnvWrapper(task.make(), [Half()])))


@pytest.mark.parametrize(("tool_role", "role"), [(False, "user"), (True, "tool")])
def test_turns_of_tools_are_shown_in_the_tool_role_if_the_renderer_has_one(tokenizer, tool_role, role):
    episode = play_with_tools(tokenizer, tool_role=tool_role)
    assert [turn.info["use_tool"] for turn in episode.turns] == [True, True, False, True, False]
    roles = [role, role, "user", role]
    messages = [{"role": "user", "content": episode.first_observation}]
    for i, turn in enumerate(episode.turns):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert turn.prompt_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        if turn is not episode.turns[-1]:
            messages.append({"role": "assistant", "content": turn.action})
            messages.append({"role": roles[i], "content": turn.observation})
    assert episode.append_only


def test_turns_without_a_tool_are_the_same_with_a_tool_role(tokenizer, renderer):
    script = [say(tokenizer, f"\\boxed{{{n}}}") for n in (1, 2, 7)]
    assert play(TASK, script, ChatRenderer(tokenizer, tool_role=True)) == play(TASK, script, renderer)


def test_a_replaced_history_has_no_tool_role(tokenizer):
    def history(env):
        return ObservationWrapper(env, include_chat_template=False)

    assert play_with_tools(tokenizer, history, tool_role=True) == play_with_tools(tokenizer, history)


def test_a_replaced_history_gives_a_prompt_of_its_own_each_turn(tokenizer, renderer):
    def make_env(task):
        return ObservationWrapper(task.make(), include_chat_template=False)

    episode = play(
        TASK, [say(tokenizer, "\\boxed{1}"), say(tokenizer, "\\boxed{2}")], renderer, Limits(2), make_env=make_env
    )
    second = episode.turns[1]
    assert second.prompt_ids == renderer.first(episode.turns[0].observation)
    assert not episode.append_only
    with pytest.raises(ValueError, match="as_transitions"):
        episode.as_sequence()


def test_a_history_that_is_rendered_already_is_encoded_and_not_rendered_again(tokenizer, renderer):
    def make_env(task):
        return ObservationWrapper(task.make(), tokenizer=tokenizer)

    plain = play(TASK, [say(tokenizer, "\\boxed{1}"), say(tokenizer, "\\boxed{2}")], renderer, Limits(2))
    chat = play(
        TASK, [say(tokenizer, "\\boxed{1}"), say(tokenizer, "\\boxed{2}")], renderer, Limits(2), make_env=make_env
    )
    assert [t.prompt_ids for t in chat.turns] == [t.prompt_ids for t in plain.turns]


def test_what_an_environment_puts_into_prefix_and_suffix_is_seen(tokenizer, renderer):
    class Board(EnvWrapper):
        def step(self, action):
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated, truncated, {**info, "prefix": "<", "suffix": " board>"}

    episode = play(TASK, [say(tokenizer, "\\boxed{1}")], renderer, Limits(2), make_env=lambda t: Board(t.make()))
    assert episode.turns[0].observation == "<My number is higher than 1. board>"
    assert episode.turns[0].observation in tokenizer.decode(episode.turns[1].prompt_ids)


@pytest.mark.parametrize("name", ["concat", "concat_with_action", "concat_chat", "concat_chat_on_reset"])
def test_a_history_wrapper_shows_prefix_and_suffix_once_and_never_as_the_models_words(tokenizer, renderer, name):
    class Board(Env):
        blocking = False

        def reset(self, seed=None):
            super().reset(seed)
            return "first", {"suffix": " FIRSTBOARD"}

        def step(self, action):
            return "second", 0.0, False, False, {"suffix": " SECONDBOARD"}

    wrap = get_wrapper_fns(name, tokenizer)[0]
    script = [say(tokenizer, "ok")]
    episode = play(TASK, script, renderer, Limits(max_turns=2), make_env=lambda task: wrap(Board()))
    first, second = (tokenizer.decode(turn.prompt_ids) for turn in episode.turns)
    assert first.count("FIRSTBOARD") == 1
    assert second.count("SECONDBOARD") == 1
    assert "FIRSTBOARD" not in first.split("<|im_start|>assistant")[-1]
    if name == "concat_chat":
        assert "SECONDBOARD" not in second.split("<|im_start|>assistant")[-1]


def test_train_and_eval_tasks_of_the_same_seeds_are_other_episodes(tokenizer, renderer):
    def first_board(split):
        tasks = make_tasks("game:Minesweeper-v0-hard", range(4), split=split)
        engine = ScriptedEngine([say(tokenizer, "\\boxed{reveal 3 3}")])
        return [e.turns[0].observation for e in asyncio.run(run_episodes(tasks, engine, renderer, Limits(1)))]

    assert first_board("train") == first_board("train")
    assert not set(first_board("train")) & set(first_board("eval"))


@pytest.mark.parametrize(
    "name", ["max_turns", "max_new_tokens", "max_context", "max_completion", "step_timeout", "max_threads"]
)
def test_a_limit_that_is_not_positive_is_refused(name):
    with pytest.raises(ValueError, match=f"Limits.{name} must be positive, got 0"):
        Limits(**{name: 0})


def test_episodes_played_one_at_a_time_share_the_threads_of_their_runner(tokenizer, renderer):
    running, most, lock = 0, 0, threading.Lock()

    def work(env, action):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return "on", 0.0, True, False, {}

    def make_env(task):
        return Plain(work, blocking=True)

    limits = Limits(max_threads=2)
    engine = ScriptedEngine([say(tokenizer, "x")])

    async def run():
        runners = [shared_runner(renderer, limits, make_env) for _ in range(12)]
        return await asyncio.gather(*(runner.run(TASK, engine) for runner in runners))

    assert len(asyncio.run(run())) == 12
    assert most == 2


def play_turns(tokenizer, renderer, tasks, wanted, width, make_env, **options):
    engine = ScriptedEngine([say(tokenizer, "x")])
    runner = EpisodeRunner(renderer, Limits(), make_env)
    return asyncio.run(run_turns(iter(tasks), wanted, engine, runner, width, **options))


class OfLength(Plain):
    """An episode has as many turns as its seed says."""

    def reset(self, seed=None):
        self.length = seed
        return super().reset(seed)

    def step(self, action):
        self.turn += 1
        return "on", 1.0, self.turn == self.length, False, {}


@pytest.mark.parametrize("width", [1, 3, 50])
@pytest.mark.parametrize("wanted", [1, 7, 20])
def test_episodes_are_played_until_there_are_enough_turns_and_all_that_began_end(tokenizer, renderer, wanted, width):
    lengths = [1, 5, 2, 8, 3, 1, 4] * 9
    tasks = [Task(EASY, length) for length in lengths]
    episodes = play_turns(tokenizer, renderer, tasks, wanted, width, lambda task: OfLength())
    assert [len(episode.turns) for episode in episodes] == lengths[: len(episodes)]
    assert sum(len(episode.turns) for episode in episodes) >= wanted
    if width == 1:
        assert sum(lengths[: len(episodes) - 1]) < wanted


def test_when_the_tasks_come_to_an_end_so_does_the_play(tokenizer, renderer):
    episodes = play_turns(tokenizer, renderer, [Task(EASY, 2)] * 3, 100, 2, lambda task: OfLength())
    assert [len(episode.turns) for episode in episodes] == [2, 2, 2]
    assert play_turns(tokenizer, renderer, [], 100, 2, lambda task: OfLength()) == []


@pytest.mark.parametrize(("on_error", "count"), [("mask", 6), ("keep", 4)])
def test_turns_of_invalid_episodes_do_not_count_unless_they_are_kept(tokenizer, renderer, on_error, count):
    def make_env(task):
        return Plain(fail) if task.seed == 1 else OfLength()

    tasks = [Task(EASY, seed) for seed in (2, 1, 2, 1, 2, 2, 2, 2)]  # an episode that fails has two turns as well
    episodes = play_turns(tokenizer, renderer, tasks, 8, 1, make_env, on_error=on_error)
    assert [episode.task.seed for episode in episodes] == [2, 1, 2, 1, 2, 2][:count]


def test_an_environment_that_always_fails_comes_to_an_end(tokenizer, renderer):
    episodes = play_turns(tokenizer, renderer, [Task(EASY, 2)] * 99, 8, 3, lambda task: Plain(fail))
    assert [episode.truncation for episode in episodes] == ["error"] * 16


def test_a_task_that_cannot_be_played_ends_the_others(tokenizer, renderer):
    closed = []

    def make_env(task):
        if task.seed == 3:
            raise ValueError("no such level")
        env = OfLength()
        env.close = lambda: closed.append(task.seed)
        return env

    with pytest.raises(ValueError, match="no such level"):
        play_turns(tokenizer, renderer, [Task(EASY, seed) for seed in (9, 9, 3)], 100, 3, make_env)
    assert closed == [9, 9]


def test_an_observation_that_the_template_refuses_ends_its_own_episode(tokenizer):
    class Refused(Env):
        blocking = False

        def __init__(self, at=1):
            super().__init__()
            self.at = at

        def reset(self, seed=None):
            super().reset(seed)
            return "tool_response" if self.at == 0 else "Begin.", {}

        def step(self, action):
            return "tool_response", 1.0, False, False, {}

    own = deepcopy(tokenizer)
    refuse = "{% if 'tool_response' in message['content'] %}{{ raise_exception('no query') }}{% endif %}{{"
    own.chat_template = own.chat_template.replace("{{", refuse, 1)
    ENV_REGISTRY.pop("test:Refused-v0", None)
    register("test:Refused-v0", Refused)
    tasks = [Task("test:Refused-v0", 0), Task("test:Refused-v0", 1, {"at": 0}), TASK]
    later, first, other = asyncio.run(run_episodes(tasks, ScriptedEngine([[5]]), ChatRenderer(own)))
    for episode, turns in ((later, 1), (first, 1)):
        assert (episode.truncation, len(episode.turns)) == ("error", turns)
        assert "the chat template refuses the observation" in episode.error
    assert other.truncation != "error"
