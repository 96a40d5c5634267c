"""Episodes against a generate function that takes a batch."""

import asyncio
import threading
import time

import pytest

from gem.core import Env
from gem.rollout import (
    BatchedRollout,
    ChatRenderer,
    GatheringEngine,
    Limits,
    Response,
    run_episodes,
)
from gem.tasks import Task, make_tasks

TASKS = make_tasks("game:GuessTheNumber-v1-easy", range(12))


@pytest.fixture
def renderer(tokenizer):
    return ChatRenderer(tokenizer)


@pytest.fixture
def guess_one(tokenizer):
    return tokenizer("\\boxed{1}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


class Slow(Env):
    """A blocking environment whose step takes as long as its seed says; three turns."""

    def reset(self, seed=None):
        super().reset(seed)
        self.turn, self.delay = 0, self.rng.random() / 50
        return "begin", {}

    def step(self, action):
        time.sleep(self.delay)
        self.turn += 1
        return "on", 0.0, self.turn == 3, False, {}


def test_every_running_episode_is_in_every_batch_in_the_order_of_the_tasks(renderer, guess_one):
    sizes = []
    with BatchedRollout(TASKS, renderer) as rollout:
        while batch := rollout.next_batch():
            assert [r.episode for r in batch] == sorted(r.episode for r in batch)
            sizes.append(len(batch))
            rollout.answer(batch, [Response(guess_one, None, "stop") for _ in batch])
    won_at_once = sum(e.success for e in rollout.episodes)
    assert 0 < won_at_once < 12
    assert sizes == [12] + [12 - won_at_once] * 3


def test_slow_environments_make_no_batch_smaller_and_no_order_different(renderer, guess_one):
    sizes = []
    with BatchedRollout(TASKS, renderer, make_env=lambda task: Slow()) as rollout:
        while batch := rollout.next_batch():
            assert [r.episode for r in batch] == list(range(12))
            sizes.append(len(batch))
            rollout.answer(batch, [Response(guess_one, None, "stop") for _ in batch])
    assert sizes == [12, 12, 12]
    assert [e.task.seed for e in rollout.episodes] == list(range(12))


def test_generation_happens_in_the_callers_thread_and_environments_in_others(renderer, guess_one):
    threads = []

    def make_env(task):
        threads.append(threading.current_thread())
        return task.make()

    with BatchedRollout(TASKS[:2], renderer, make_env=make_env) as rollout:
        while batch := rollout.next_batch():
            rollout.answer(batch, [Response(guess_one, None, "stop") for _ in batch])
    assert threading.current_thread() not in threads


def test_an_answer_over_its_own_limit_is_cut(renderer, guess_one):
    with BatchedRollout(TASKS[:1], renderer, Limits(max_turns=1, max_new_tokens=2)) as rollout:
        while batch := rollout.next_batch():
            rollout.answer(batch, [Response(guess_one, [-1.0] * len(guess_one), "stop") for _ in batch])
    turn = rollout.episodes[0].turns[0]
    assert (turn.response_ids, turn.logprobs, turn.finish_reason) == (guess_one[:2], [-1.0, -1.0], "length")


def test_no_tasks_make_no_batch(renderer):
    with BatchedRollout([], renderer) as rollout:
        assert rollout.next_batch() == []
        assert rollout.next_batch() == []
    assert rollout.episodes == []


def test_what_the_driver_raises_reaches_the_caller(renderer):
    unknown = [Task("game:Nothing", 0)]
    with pytest.raises(ValueError, match="no environment 'game:Nothing'"), BatchedRollout(unknown, renderer) as rollout:
        rollout.next_batch()


def test_episodes_that_cannot_begin_hold_up_no_batch(renderer, guess_one):
    with BatchedRollout(TASKS, renderer, Limits(max_context=5)) as rollout:
        assert rollout.next_batch() == []
    assert {(e.truncation, len(e.turns)) for e in rollout.episodes} == {("overlong", 0)}


def test_a_generate_function_that_raises_ends_the_rollout_and_leaves_no_thread(renderer):
    before = threading.active_count()
    with (
        pytest.raises(ZeroDivisionError),
        BatchedRollout(TASKS, renderer, make_env=lambda task: Slow()) as rollout,
    ):
        rollout.answer(rollout.next_batch(), [1 / 0])
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_failing_environments_do_not_hold_up_the_batch(renderer, guess_one):
    class Failing(Slow):
        def step(self, action):
            raise RuntimeError("gone")

    with BatchedRollout(TASKS, renderer, make_env=lambda t: Failing() if t.seed % 2 else Slow()) as rollout:
        while batch := rollout.next_batch():
            rollout.answer(batch, [Response(guess_one, None, "stop") for _ in batch])
    assert [e.truncation for e in rollout.episodes] == [None, "error"] * 6


def test_those_who_wait_are_answered_together(renderer, guess_one):
    sizes = []

    def generate(batch):
        sizes.append(len(batch))
        return [Response(guess_one, None, "stop") for _ in batch]

    episodes = asyncio.run(run_episodes(TASKS, GatheringEngine(generate), renderer))
    won_at_once = sum(len(episode.turns) == 1 for episode in episodes)
    assert sizes == [12] + [12 - won_at_once] * 3


def test_a_slow_environment_holds_up_no_other_episode(renderer, guess_one):
    """All but one finish while the one is still in its first step."""
    hold = threading.Event()
    ended = []

    class Held(Slow):
        def step(self, action):
            if self.held and self.turn == 0:
                hold.wait(60)
            return super().step(action)

    def make_env(task):
        env = Held()
        env.held = task.seed == 0
        return env

    def on_episode(episode):
        ended.append(episode.task.seed)
        if len(ended) == 11:
            hold.set()

    engine = GatheringEngine(lambda batch: [Response(guess_one, None, "stop") for _ in batch])
    asyncio.run(run_episodes(TASKS, engine, renderer, Limits(), make_env, on_episode=on_episode))
    assert ended[-1] == 0
    assert sorted(ended) == list(range(12))


def test_generation_is_in_a_thread_and_once_at_a_time(renderer, guess_one):
    busy = threading.Lock()
    threads = set()

    def generate(batch):
        assert busy.acquire(blocking=False)
        threads.add(threading.get_ident())
        time.sleep(0.005)
        busy.release()
        return [Response(guess_one, None, "stop") for _ in batch]

    asyncio.run(run_episodes(TASKS, GatheringEngine(generate), renderer, make_env=lambda task: Slow()))
    assert threading.get_ident() not in threads


def test_requests_that_were_cancelled_are_not_generated_for(renderer, guess_one):
    asked = []

    def generate(batch):
        asked.append([request.episode for request in batch])
        return [Response(guess_one, None, "stop") for _ in batch]

    async def main():
        engine = GatheringEngine(generate)
        jobs = [asyncio.ensure_future(engine.generate([1], 8, episode=episode)) for episode in range(3)]
        await asyncio.sleep(0)
        jobs[1].cancel()
        return await asyncio.gather(*jobs, return_exceptions=True)

    first, cancelled, last = asyncio.run(main())
    assert asked == [[0, 2]]
    assert isinstance(cancelled, asyncio.CancelledError)
    assert first.token_ids == last.token_ids == guess_one


def test_what_generation_raises_reaches_the_caller(renderer):
    def generate(batch):
        raise OSError("the engine is gone")

    with pytest.raises(OSError, match="the engine is gone"):
        asyncio.run(run_episodes(TASKS, GatheringEngine(generate), renderer))
