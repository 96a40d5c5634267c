"""What breaks the contract is an error that names its environment, on every back end, and the others go on."""

import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from faulty_envs import (
    BREAK_THEIR_PROCESS,
    FAULTS,
    HARMLESS,
    HARMLESS_IN_A_PROCESS,
    UNSENDABLE,
    AsyncFaulty,
    AwaitsNonsense,
    Faulty,
    NotAsync,
)
from vector_envs import AsyncTold, Told

import gem
from gem.vector.asyncio_vector_env import AsyncioVectorEnv
from gem.vector.process_vector_env import ProcessVectorEnv
from gem.vector.sync_vector_env import SyncVectorEnv
from gem.vector.thread_vector_env import ThreadVectorEnv
from gem.vector.vector_env import CrashLoop

KINDS = {
    "sync": SyncVectorEnv,
    "thread": ThreadVectorEnv,
    "asyncio": AsyncioVectorEnv,
    "process": partial(ProcessVectorEnv, workers=1),
}


@pytest.fixture(params=KINDS)
def kind(request):
    """Make vector environments."""
    return KINDS[request.param]


def faulty(kind):
    return AsyncFaulty if kind is AsyncioVectorEnv else Faulty


def check_errors(vec, faults):
    """Step once; each environment of a fault has failed by it, and the one that follows them has not."""
    vec.reset(seed=5)
    *_, truncated, infos = vec.step(["x"] * vec.num_envs)
    wrong = {}
    for (name, (_, error)), info in zip(faults.items(), infos, strict=False):
        if not info.get("error", "").startswith(error) or len(info["error"]) > 5000:
            wrong[name] = info.get("error", "no error")[:200]
    assert wrong == {}
    assert truncated.tolist() == [not info.get("final_obs") for info in infos[:-1]] + [False]
    assert vec.faults == [1] * len(faults) + [0]


def test_whatever_an_environment_raises_or_returns_is_its_own_failure(kind):
    with kind([""] * (len(FAULTS) + 1), [*(partial(faulty(kind), name) for name in FAULTS), Told]) as vec:
        check_errors(vec, FAULTS)


def test_what_cannot_go_from_one_process_to_another_is_the_environments_failure():
    builds = [partial(Faulty, name, "unsendable") for name in UNSENDABLE]
    with ProcessVectorEnv([""] * (len(builds) + 1), [*builds, Told], workers=1) as vec:
        check_errors(vec, UNSENDABLE)
        with pytest.raises(CrashLoop, match="environment 2 failed 5 times in a row: what it returned cannot be read"):
            step_often(vec, {2: "x"})


def test_a_reset_that_cannot_be_sent_begins_an_episode_of_a_fresh_environment():
    with ProcessVectorEnv([""], [UnsendableOnSeed99], "disabled", workers=1) as vec:
        observations, infos = vec.reset(seed=99)
        assert observations[0].startswith("begin")
        assert infos[0]["error"].startswith("what it returned cannot be sent: TypeError")
        assert vec.step(["x"])[0][0].startswith("1 1 ")


class UnsendableOnSeed99(Told):
    def reset(self, seed=None):
        observation, info = super().reset(seed)
        return observation, UNSENDABLE["lock"][0]()[4] if seed == 99 else info


def step_often(vec, actions):
    for _ in range(9):
        vec.step(actions)


def test_a_return_value_that_cannot_be_sent_does_not_cost_the_environment():
    with ProcessVectorEnv([""], [HasThings], workers=1) as vec:
        vec.reset(seed=5)
        with pytest.raises(RuntimeError, match="what it returned cannot be sent: TypeError"):
            vec.call("unsendable")
        with pytest.raises(RuntimeError, match="what it returned cannot be read: SystemExit"):
            vec.call("unreadable")
        assert vec.step(["x"])[0][0].startswith("1 1 ")
        assert vec.faults == [0]


class HasThings(Told):
    def unsendable(self):
        return UNSENDABLE["lock"][0]()

    def unreadable(self):
        return UNSENDABLE["load"][0]()


@pytest.mark.parametrize("name", [name for name in HARMLESS if "fork" not in name])
def test_texts_and_dicts_are_passed_on_as_plain_ones(kind, name):
    with kind([""], [partial(faulty(kind), name, "harmless")]) as vec:
        vec.reset(seed=5)
        (observation,), *_ = vec.step(["x"])
        assert (type(observation), observation) == (str, HARMLESS[name][1])


FORKING = """
import os, sys
sys.path[:0] = {path!r}
from test_faulty_envs import HARMLESS, KINDS, Told, faulty, partial
kind = KINDS[{kind!r}]
names = [name for name in HARMLESS if "fork" in name]
with kind([""] * 4, [*(partial(faulty(kind), name, "harmless") for name in names), Told]) as vec:
    vec.reset(seed=5)
    print(vec.step(["x"] * 4)[0][:3], vec.step(["x"] * 4)[3].tolist(), vec.faults, flush=True)
"""


@pytest.mark.parametrize("name", KINDS)
def test_a_child_that_an_environment_forks_does_not_come_back_from_its_step(name):
    code = FORKING.format(path=sys.path, kind=name)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{['forked'] * 3} {[False] * 4} {[0] * 4}\n", done.stderr


def test_what_an_environment_replaces_in_its_process_does_no_harm_to_the_others():
    builds = [partial(Faulty, name, "patch") for name in HARMLESS_IN_A_PROCESS]
    with ProcessVectorEnv([""] * (len(builds) + 1), [*builds, Told], workers=1) as vec:
        vec.reset(seed=5)
        for _ in range(3):
            observations, _, _, truncated, _ = vec.step(["x"] * vec.num_envs)
            assert observations[:-1] == [said for _, said in HARMLESS_IN_A_PROCESS.values()]
            assert not truncated.any()
        assert vec.restarts == 0


@pytest.mark.parametrize("name", BREAK_THEIR_PROCESS)
def test_an_environment_that_breaks_its_process_is_named_and_the_others_go_on(name):
    build = partial(Faulty, name, "break")
    ids = ["good", "bad", "fine"]
    with SyncVectorEnv([""] * 3, [Told] * 3) as others:
        others.reset(seed=5)
        steps = [others.step(["x"] * 3)[0] for _ in range(5)]
    with ProcessVectorEnv(ids, [Told, build, Told], timeout=0.5, workers=1) as vec:
        vec.reset(seed=5)
        for observations in steps[:4]:
            said, _, _, truncated, infos = vec.step(["x"] * 3)
            assert [said[0], said[2]] == [observations[0], observations[2]]
            assert truncated.tolist() == [False, True, False]
            assert infos[1]["error"].startswith(BREAK_THEIR_PROCESS[name][1])
        with pytest.raises(CrashLoop, match=r"environment 1 \(bad\) failed 5 times in a row"):
            vec.step(["x"] * 3)
        vec.recv()
        assert vec.step({0: "x", 2: "x"})[3].tolist() == [False, False]
        assert (vec.faults, vec.restarts) == ([0, 5, 0], 5)


def test_a_process_that_ends_again_and_again_by_nobodys_fault_ends_what_is_expected_of_it(monkeypatch):
    with ProcessVectorEnv([""] * 2, [Told] * 2, workers=1) as vec:
        vec.reset(seed=5)
        monkeypatch.setattr(vec, "_post", lambda worker, jobs: vec._control.send(_kill(worker)))
        with pytest.raises(CrashLoop, match="environment 0 failed 5 times in a row: its process was ended by SIGKILL"):
            vec.step(["x"] * 2)
        assert vec.restarts < 10


def _kill(worker):
    from gem.vector.process_messages import KILL, ORDER

    return ORDER.pack(KILL, worker.number)


@pytest.mark.parametrize("action", ["x", "raise"])
def test_coroutines_that_are_none_are_their_environments_failure(action):
    with AsyncioVectorEnv([""] * 2, [AsyncTold, NotAsync]) as vec:
        vec.reset(seed=5)
        truncated, infos = vec.step(["x", action])[3:]
        assert truncated.tolist() == [False, True]
        assert infos[1]["error"].startswith("SystemExit: 3" if action == "raise" else "TypeError")


@pytest.mark.parametrize(("action", "error"), [("yield", "bad yield"), ("other", "attached to a different loop")])
def test_awaiting_what_no_event_loop_can_wait_for_raises_in_the_coroutine(action, error):
    with AsyncioVectorEnv([""] * 2, [AsyncTold, AwaitsNonsense]) as vec:
        vec.reset(seed=5)
        truncated, infos = vec.step(["x", action])[3:]
        assert truncated.tolist() == [False, True]
        assert error in infos[1]["error"]


def test_a_step_before_the_reset_names_its_environment(kind):
    with kind(["a", "b"], [Told] * 2) as vec:
        vec.reset(seed=5, only=[0])
        with pytest.raises(gem.ResetNeeded, match=r"environment 1 \(b\): the episode has ended or not begun"):
            vec.step(["x"] * 2)


def test_a_failing_build_is_named_too():
    with pytest.raises(CrashLoop, match=r"environment 1 \(b\) failed 5 times in a row: its process ended with code 7"):
        ProcessVectorEnv(["a", "b"], [Told, Exits], workers=1)


class Exits(Told):
    def __init__(self):
        self.misbehave("exit")


class Published(Told):
    """Returns what environments for gem-llm 0.1.0 may return."""

    def step(self, action):
        return np.str_("x"), np.float32(0.5), np.bool_(False), np.int64(0), {"array": np.zeros(2)}


def test_numbers_and_flags_of_numpy_are_fine(kind):
    with kind([""], [Published]) as vec:
        vec.reset(seed=5)
        observations, rewards, terminated, truncated, infos = vec.step(["x"])
        assert (observations, rewards.tolist(), terminated.tolist(), truncated.tolist()) == (
            ["x"],
            [0.5],
            [False],
            [False],
        )
        assert infos[0]["array"].tolist() == [0.0, 0.0]


def test_a_crash_loop_can_be_pickled():
    error = pickle.loads(pickle.dumps(CrashLoop("gone", 3, "game:Sudoku-v0")))
    assert (error.index, error.env_id, error.error) == (3, "game:Sudoku-v0", "gone")
    assert str(error) == "environment 3 (game:Sudoku-v0) failed 5 times in a row: gone"
