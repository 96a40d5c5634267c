"""Environments that compute, or may take their process down, are played in other processes."""

import asyncio
import gc
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from processes import descendants

import gem
from gem import registry
from gem.rollout import ChatRenderer, EpisodeRunner, Limits, run_episodes
from gem.tasks import Task, make_tasks
from gem.testing import ScriptedEngine
from gem.wrappers import TimeLimit

sys.path.insert(0, str(Path(__file__).parents[1] / "vector"))  # other processes import it, too
from vector_envs import Told


class Says(ScriptedEngine):
    """Says what the task's seed stands for."""

    def __init__(self, tokenizer, words):
        super().__init__([[0]])
        self._ids = [
            [*tokenizer(word, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for word in words
        ]

    async def generate(self, prompt_ids, max_new_tokens, *, episode=0):
        return self._ids[episode], None, "stop"


@pytest.fixture
def computes(monkeypatch):
    monkeypatch.setattr(Told, "cpu_bound", True)
    gem.register("test:Computes-v0", "vector_envs:Told")
    yield "test:Computes-v0"
    del registry.ENV_REGISTRY["test:Computes-v0"]


def play(tokenizer, env_id, words, limits=None, make_env=Task.make):
    tasks = make_tasks(env_id, range(len(words)))
    return asyncio.run(run_episodes(tasks, Says(tokenizer, words), ChatRenderer(tokenizer), limits, make_env))


def test_episodes_are_those_of_this_process(tokenizer, computes, monkeypatch):
    there = play(tokenizer, computes, ["go", "left", "right"])
    monkeypatch.setattr(Told, "cpu_bound", False)
    here = play(tokenizer, computes, ["go", "left", "right"])
    assert [episode.error for episode in there] == [None] * 3
    for one, other in zip(there, here, strict=True):
        assert one.first_observation == other.first_observation
        assert one.turns == other.turns


def test_one_that_fails_ends_its_own_episode_only(tokenizer, computes):
    words = ["go", "exit", "raise", "hang", "go"]
    episodes = play(tokenizer, computes, words, Limits(step_timeout=1.0))
    assert [episode.truncation for episode in episodes] == [None, "error", "error", "error", None]
    assert "ended with code 7" in episodes[1].error
    assert episodes[2].error == "ValueError: told to"
    assert "no answer within 1 s" in episodes[3].error
    assert all(len(episodes[at].turns) == 5 for at in (0, 4))


def test_waiting_for_the_model_keeps_nobody_from_a_process(tokenizer, computes):
    class All(Says):
        """Answers nobody before all have asked."""

        asked = 0

        async def generate(self, prompt_ids, max_new_tokens, *, episode=0):
            self.asked += 1
            while self.asked < len(self._ids):
                await asyncio.sleep(0.01)
            return await super().generate(prompt_ids, max_new_tokens, episode=episode)

    count = 2 * Limits().max_threads + 1
    tasks = make_tasks(computes, range(count))
    run = run_episodes(tasks, All(tokenizer, ["go"] * count), ChatRenderer(tokenizer))
    episodes = asyncio.run(asyncio.wait_for(run, 60))
    assert [len(episode.turns) for episode in episodes] == [5] * count


def test_wrappers_go_along_and_what_cannot_is_told(tokenizer, computes):
    (episode,) = play(tokenizer, computes, ["go"], make_env=partial(limited, 2))
    assert (episode.truncation, len(episode.turns)) == ("turns", 2)
    with pytest.raises(TypeError, match="cannot be sent to other processes"):
        play(tokenizer, computes, ["go"], make_env=lambda task: task.make())
    refused = run_episodes([Task(computes, 0, {"no": 1})], Says(tokenizer, ["go"]), ChatRenderer(tokenizer))
    with pytest.raises(TypeError, match="no argument"):
        asyncio.run(refused)


def limited(turns, task):
    return TimeLimit(task.make(), turns)


@pytest.mark.parametrize("cpu_bound", [True, False])
def test_a_runner_can_play_in_one_event_loop_after_another(tokenizer, computes, monkeypatch, cpu_bound):
    monkeypatch.setattr(Told, "cpu_bound", cpu_bound)
    before, threads = descendants(), threading.active_count()
    runner = EpisodeRunner(ChatRenderer(tokenizer), Limits(max_threads=3))
    for _ in range(3):
        episode = asyncio.run(runner.run(Task(computes, 0), Says(tokenizer, ["go"])))
        assert (episode.error, len(episode.turns)) == (None, 5)
    assert (len(descendants()) > len(before)) == cpu_bound
    assert (threading.active_count() - threads == 3) == (not cpu_bound)  # those of the first two have ended
    del runner
    gc.collect()
    deadline = time.monotonic() + 5
    while (descendants() != before or threading.active_count() > threads) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (descendants(), threading.active_count()) == (before, threads)


def test_processes_end_with_the_run(tokenizer, computes):
    before = descendants()
    play(tokenizer, computes, ["go"])
    deadline = time.monotonic() + 5
    while descendants() != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert descendants() == before
