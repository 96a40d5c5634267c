"""Recorded episodes against their environments."""

import asyncio

import numpy as np
import pytest

from gem.core import Env
from gem.rollout import ChatRenderer, Episode, Limits, Response, replay, run_episode, run_episodes
from gem.tasks import Task, make_tasks
from gem.testing import ScriptedEngine
from gem.wrappers import TimeLimit

GAMES = ["GuessTheNumber-v1", "Mastermind-v0", "Minesweeper-v0", "TowerofHanoi-v0"]
TASK = Task("game:GuessTheNumber-v1-easy", seed=0)  # the number is 7


def random_play(task):
    """Return the actions of an episode at random."""
    with task.make() as env:
        env.reset(seed=task.reset_seed)
        ended, actions = False, []
        while not ended:
            actions.append(env.sample_random_action())
            ended = any(env.step(actions[-1])[2:4])
    return actions


@pytest.fixture
def play(tokenizer):
    """Play tasks with the given actions, an episode each."""

    def play(tasks, actions, limits=None, **kwargs):
        scripts = [iter(episode) for episode in actions]

        def answer(episode, prompt_ids):
            action = next(scripts[episode])
            if isinstance(action, Response):
                return action
            return [*tokenizer(action, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

        renderer = ChatRenderer(tokenizer)
        return asyncio.run(run_episodes(tasks, ScriptedEngine(answer), renderer, limits, **kwargs))

    return play


@pytest.fixture
def guessing(play):
    """Two guesses that are too low, and the number."""
    (episode,) = play([TASK], [["\\boxed{1}", "so \\boxed{5}", "\\boxed{7}"]])
    return episode


class Fragile(Env):
    """Fails in its third turn."""

    blocking = False

    def __init__(self, fails=True):
        super().__init__()
        self._fails = fails
        self.turns = self.closed = 0

    def reset(self, seed=None):
        super().reset(seed)
        return f"begin {self.rng.random()}", {}

    def step(self, action):
        self.turns += 1
        if self._fails and self.turns == 3:
            raise RuntimeError("the server is gone")
        return f"{self.turns} {action} {self.rng.random()}", 0.1, False, False, {}

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("variant", ["", "-easy", "-random"])
@pytest.mark.parametrize("game", GAMES)
def test_episodes_of_a_game_hold(game, variant, play):
    tasks = make_tasks(f"game:{game}{variant}", range(2)) + make_tasks(f"game:{game}{variant}", [0], split="eval")
    episodes = play(tasks, [random_play(task) for task in tasks], Limits(max_new_tokens=1000))
    for episode, task in zip(episodes, tasks, strict=True):
        assert [turn.action for turn in episode.turns] == random_play(task)
        assert replay(episode) == []
        assert replay(Episode.from_json(episode.to_json())) == []


def test_episode_of_actions_that_are_no_moves_holds(play):
    for action in ("", "I do not know", "\\boxed{99}", "\\boxed{x}"):
        (episode,) = play([TASK], [[action] * 9])
        assert replay(Episode.from_json(episode.to_json())) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("observation", "My number is higher than 5. "),
        ("reward", 1e-9),
        ("terminated", True),
        ("truncated", True),
        ("info", {"success": False, "move": "illegal"}),
        ("info", {}),
    ],
)
def test_each_field_that_was_changed_is_reported_at_its_turn(field, value, guessing):
    recorded = getattr(guessing.turns[1], field)
    setattr(guessing.turns[1], field, value)
    assert replay(guessing) == [f"turn 2 {field}: recorded {value!r}, now {recorded!r}"]


def test_first_observation_that_was_changed_is_reported(guessing):
    guessing.first_observation += " "
    assert replay(guessing)[0].startswith("first observation: recorded 'Guess The Number")


def test_last_turn_is_compared_too(guessing):
    guessing.turns[-1].reward = 0.0
    assert replay(guessing) == ["turn 3 reward: recorded 0.0, now 1.0"]


def test_action_that_was_changed_is_reported_by_what_it_leads_to(guessing):
    guessing.turns[0].action = "\\boxed{2}"
    assert replay(guessing) == [
        "turn 1 observation: recorded 'My number is higher than 1.', now 'My number is higher than 2.'"
    ]


@pytest.mark.parametrize("task", [Task(TASK.env_id, 1), Task(TASK.env_id, 0, split="eval")])
def test_task_that_was_changed_is_reported(task, guessing):
    guessing.task = task
    assert replay(guessing)


def test_all_that_is_different_in_a_turn_is_reported_and_no_later_turn(guessing):
    for turn in guessing.turns[1:]:
        turn.reward, turn.truncated = 0.5, True
    assert [difference.split(":")[0] for difference in replay(guessing)] == ["turn 2 reward", "turn 2 truncated"]


def test_environment_whose_rules_have_changed_is_reported(guessing):
    changed = Task(TASK.env_id, TASK.seed, {"max_turns": 2})
    assert replay(guessing, make_env=lambda task: changed.make())


def test_episode_under_a_turn_limit_holds(play):
    (episode,) = play([TASK], [["\\boxed{1}"] * 9], Limits(max_turns=2))
    assert (episode.truncation, len(episode.turns)) == ("turns", 2)
    assert replay(Episode.from_json(episode.to_json())) == []


def test_episode_that_the_environment_truncated_holds(play):
    (episode,) = play([TASK], [["\\boxed{1}"] * 9])
    assert (episode.truncation, len(episode.turns)) == ("turns", 4)
    assert replay(Episode.from_json(episode.to_json())) == []


def test_episode_that_filled_its_context_holds(play):
    (whole,) = play([TASK], [["\\boxed{1}"] * 9])
    (episode,) = play([TASK], [["\\boxed{1}"] * 9], Limits(max_context=len(whole.turns[2].prompt_ids)))
    assert (episode.truncation, len(episode.turns)) == ("context", 2)
    assert replay(Episode.from_json(episode.to_json())) == []


def test_episode_of_answers_that_were_cut_holds(play):
    (episode,) = play([TASK], [["\\boxed{1}, I think, or another one"] * 9], Limits(max_new_tokens=6))
    assert {turn.finish_reason for turn in episode.turns} == {"length"}
    assert replay(Episode.from_json(episode.to_json())) == []


@pytest.mark.parametrize("partial", [[], [5]])
def test_turn_that_the_engine_aborted_is_not_played(partial, play):
    (episode,) = play([TASK], [["\\boxed{1}", Response(partial, None, "abort")]])
    assert (episode.truncation, len(episode.turns)) == ("abort", 1 + len(partial))
    assert replay(Episode.from_json(episode.to_json())) == []


@pytest.mark.parametrize("partial", [[], [5]])
def test_turn_before_an_abort_is_compared(partial, play):
    (episode,) = play([TASK], [["\\boxed{1}", Response(partial, None, "abort")]])
    episode.turns[0].reward = 0.5
    assert replay(episode) == ["turn 1 reward: recorded 0.5, now 0.0"]


def test_turn_in_which_the_environment_failed_is_not_played(play):
    task = Task("test:Fragile", 5)
    (episode,) = play([task], [["a", "b", "c"]], make_env=lambda task: Fragile())
    assert (episode.truncation, len(episode.turns)) == ("error", 3)
    for env in (Fragile(), Fragile(fails=False)):
        assert replay(Episode.from_json(episode.to_json()), make_env=lambda task, env=env: env) == []
        assert env.turns == 2


def test_turn_before_a_failure_is_compared(play):
    (episode,) = play([Task("test:Fragile", 5)], [["a", "b", "c"]], make_env=lambda task: Fragile())
    episode.turns[1].observation = "x"
    assert replay(episode, make_env=lambda task: Fragile())[0].startswith("turn 2 observation: recorded 'x'")


def test_episode_whose_reset_failed_holds(play):
    class Down(Fragile):
        def reset(self, seed=None):
            raise RuntimeError("the server is down")

    (episode,) = play([Task("test:Down", 5)], [["a"]], make_env=lambda task: Down())
    assert (episode.truncation, len(episode.turns)) == ("error", 1)
    assert replay(Episode.from_json(episode.to_json()), make_env=lambda task: Down()) == []


def test_overlong_episode_holds_if_its_first_observation_does(play):
    limits = Limits(max_context=30)
    (episode,) = play([TASK], [["a"]], limits)
    assert (episode.truncation, len(episode.turns)) == ("overlong", 1)
    assert replay(Episode.from_json(episode.to_json())) == []
    episode.first_observation += " "
    assert replay(episode)[0].startswith("first observation: recorded 'Guess The Number")


def test_episode_with_thoughts_holds_by_what_the_environment_was_given(play):
    (episode,) = play([TASK], [["<think>\\boxed{3}?</think>\\boxed{1}", "\\boxed{7}"]])
    assert [turn.action for turn in episode.turns] == ["\\boxed{1}", "\\boxed{7}"]
    assert episode.turns[0].full_text is not None
    assert replay(Episode.from_json(episode.to_json())) == []


def test_wrapper_of_the_recording_is_given_again(play):
    def limited(task):
        return TimeLimit(task.make(), 1)

    (episode,) = play([TASK], [["\\boxed{1}"]], make_env=limited)
    assert replay(episode, make_env=limited) == []
    assert replay(episode) == ["turn 1 truncated: recorded True, now False"]


def test_environment_is_closed(play):
    (episode,) = play([Task("test:Fragile", 5)], [["a", "b", "c"]], make_env=lambda task: Fragile())
    env = Fragile()
    replay(episode, make_env=lambda task: env)
    assert env.closed == 1


@pytest.mark.parametrize("value", [(1, 2), {1: "one"}, float("nan"), np.arange(3), np.float64(0.5)])
def test_infos_that_json_writes_otherwise_hold_before_and_after_a_file(tokenizer, value):
    class Odd(Env):
        blocking = False

        def reset(self, seed=None):
            super().reset(seed)
            return "begin", {}

        def step(self, action):
            return "end", 1.0, True, False, {"value": value}

    def make_env(task):
        return Odd()

    task = Task("mylab:Odd-v0", seed=0)
    episode = asyncio.run(run_episode(task, ScriptedEngine([[5]]), ChatRenderer(tokenizer), make_env=make_env))
    assert replay(episode, make_env) == []
    assert replay(Episode.from_json(episode.to_json()), make_env) == []


def test_an_environment_that_could_not_be_built_has_nothing_to_replay(tokenizer):
    def fail(task):
        raise ConnectionError("the server is gone")

    task = Task("mylab:Odd-v0", seed=0)
    episode = asyncio.run(run_episode(task, ScriptedEngine([[5]]), ChatRenderer(tokenizer), make_env=fail))
    assert episode.truncation == "error"
    assert replay(episode, fail) == []
