"""Tasks that are tried out before training."""

import asyncio
import pickle
import random
import warnings

import pytest

from gem.core import Env
from gem.rollout import ChatRenderer, ContextTooSmall, Limits, check_tasks, drop_overlong
from gem.tasks import Task, make_tasks
from gem.vector import SyncVectorEnv

EASY = "game:GuessTheNumber-v1-easy"


@pytest.fixture
def renderer(tokenizer):
    return ChatRenderer(tokenizer)


class Wordy(Env):
    """Its first observation has as many words as its seed; counts what is done."""

    built, begun, closed = [], [], []
    blocking = False

    def __init__(self, task):
        super().__init__()
        self.task = task
        Wordy.built.append(task)
        if task.env_kwargs.get("fails") == "constructor":
            raise OSError("no display")

    def reset(self, seed=None):
        Wordy.begun.append(self.task)
        if self.task.env_kwargs.get("fails") == "reset":
            raise OSError("no display")
        super().reset(seed)
        return "word " * seed, {}

    def step(self, action):
        raise AssertionError("nothing is asked of the model")

    def close(self):
        Wordy.closed.append(self.task)


@pytest.fixture
def make_env():
    Wordy.built, Wordy.begun, Wordy.closed = [], [], []
    return Wordy


def tasks_of(env_id, seeds, **env_kwargs):
    return make_tasks(env_id, seeds, env_kwargs)


def test_every_set_up_is_built_and_some_tasks_of_each_are_begun_and_all_are_closed(renderer, make_env):
    tasks = [task for n in range(10) for task in tasks_of("x", range(100), n=n)]
    assert check_tasks(tasks, renderer, make_env=make_env, begin=30) is None
    begun = [(n, s) for n in range(10) for s in (0, 0, 34, 68)]  # one twice, to compare
    assert sorted((t.env_kwargs["n"], t.seed) for t in Wordy.begun) == begun
    assert len(Wordy.built) == len(Wordy.closed) == 40


def test_more_set_ups_than_tasks_to_begin_are_built_only(renderer, make_env):
    tasks = [task for n in range(100) for task in tasks_of("x", range(2), n=n)]
    check_tasks(tasks, renderer, make_env=make_env, begin=30)
    assert {task.env_kwargs["n"] for task in Wordy.built} == set(range(100))
    assert len(Wordy.begun) == 25 + 25  # every fourth, and again to compare
    assert len(Wordy.built) == len(Wordy.closed) == 125


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (Task("game:GuesTheNumber-v1", 0), ValueError, "The nearest: game:GuessTheNumber-v1"),
        (Task(EASY, 0, {"colour": 1}), TypeError, "takes no argument 'colour'"),
    ],
)
@pytest.mark.parametrize("begin", [1, 64])
def test_one_wrong_task_among_good_ones_is_an_error(renderer, wrong, error, message, begin):
    for tasks in ([*make_tasks(EASY, range(20)), wrong], [wrong, *make_tasks(EASY, range(20))]):
        with pytest.raises(error, match=message):
            check_tasks(tasks, renderer, begin=begin)


def test_an_id_of_which_no_task_fits_is_an_error_that_names_the_longest_prompt(renderer, make_env):
    longest = len(renderer.first("word " * 200))
    tasks = tasks_of("short", range(10)) + tasks_of("long", [100, 200, 150])
    limits = Limits(max_context=60)
    with pytest.raises(ContextTooSmall, match=rf"of long \(seed 200\) takes {longest} tokens, .* holds 60") as caught:
        check_tasks(tasks, renderer, limits, make_env)
    assert caught.value.prompt_length == longest
    check_tasks(tasks, renderer, Limits(max_context=longest + 1), make_env)


def test_a_few_tasks_that_do_not_fit_are_a_warning_with_their_count(renderer, make_env, caplog):
    tasks = tasks_of("x", [1, 100, 2, 200, 3])
    check_tasks(tasks, renderer, Limits(max_context=60), make_env)
    assert "2 of 5 tasks that were tried are too long for the context of 60 tokens" in caplog.text
    caplog.clear()
    check_tasks(tasks[::2], renderer, Limits(max_context=60), make_env)
    assert caplog.text == ""


@pytest.mark.parametrize("fails", ["constructor", "reset"])
@pytest.mark.parametrize("begin", [1, 64])
def test_an_environment_that_fails_is_logged(renderer, make_env, fails, begin, caplog):
    tasks = tasks_of("x", range(3)) + tasks_of("x", range(3), fails=fails)
    check_tasks(tasks, renderer, Limits(max_context=60), make_env, begin)
    assert ("OSError: no display" in caplog.text) is (begin == 64 or fails == "constructor")


def test_no_tasks_are_fine(renderer):
    check_tasks([], renderer)
    assert drop_overlong([], renderer, Limits()) == []


def test_tasks_can_be_checked_where_an_event_loop_runs(renderer, make_env):
    async def main():
        check_tasks(tasks_of("x", range(3)), renderer, make_env=make_env)
        return drop_overlong(tasks_of("x", [1, 200]), renderer, Limits(max_context=60), make_env)

    assert asyncio.run(main()) == tasks_of("x", [1])


def test_tasks_that_do_not_fit_are_dropped_and_counted(renderer, make_env, capsys):
    tasks = tasks_of("x", [1, 100, 2, 200, 3]) + tasks_of("x", [200], fails="reset")
    kept = drop_overlong(tasks, renderer, Limits(max_context=60), make_env)
    assert [task.seed for task in kept] == [1, 2, 3, 200]
    assert capsys.readouterr().out == ("2 of 6 tasks dropped: their first observation does not fit into the context\n")
    assert drop_overlong(tasks, renderer, Limits(), make_env) == tasks


def test_dropping_all_tasks_is_an_error(renderer, make_env):
    with pytest.raises(ContextTooSmall, match=r"of x \(seed 200\)"):
        drop_overlong(tasks_of("x", [100, 200]), renderer, Limits(max_context=60), make_env)


def test_the_error_survives_pickling():
    error = ContextTooSmall(Task("x", 3), 99, Limits(max_context=60))
    read = pickle.loads(pickle.dumps(error))
    assert (str(read), read.prompt_length, type(read)) == (str(error), 99, ContextTooSmall)
    assert "takes 99 tokens" in str(read)


class Global(Env):
    """In the form of gem-llm's example: it seeds, and draws from a generator that is not its own."""

    own = False

    def reset(self, seed=None):
        super().reset(seed)
        return f"A = {(self.rng if self.own else random).random()}", {}

    def step(self, action):
        return "", 1.0, True, False, {}


class Own(Global):
    own = True


@pytest.mark.parametrize(("env", "warned"), [(Global, True), (Own, False)])
def test_an_environment_that_is_not_fixed_by_its_seed_is_logged(renderer, env, warned, caplog):
    check_tasks(make_tasks("old:A", range(3)), renderer, make_env=lambda task: env())
    assert ("old:A begins with another observation" in caplog.text) is warned


@pytest.mark.parametrize(("env", "warned"), [(Global, 1), (Own, 0)])
def test_a_vector_environment_warns_of_it_once(env, warned):
    vec = SyncVectorEnv(["old:A"] * 4, [env] * 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vec.reset(seed=0)
        for _ in range(2):
            vec.reset(seed=[7, 7, 8, 8])
    assert len([each for each in caught if "environment 1 (old:A) begins" in str(each.message)]) == warned
