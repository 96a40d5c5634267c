"""What all back ends do alike."""

import itertools
import random
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from vector_envs import AsyncBroken, AsyncTold, Broken, Told

import gem
import gem.vector
from gem.vector.asyncio_vector_env import AsyncioVectorEnv
from gem.vector.backends import choose_backend
from gem.vector.process_vector_env import ProcessVectorEnv
from gem.vector.sync_vector_env import SyncVectorEnv
from gem.vector.thread_vector_env import ThreadVectorEnv
from gem.vector.vector_env import AutoresetMode, CrashLoop

BACKENDS = {
    "sync": SyncVectorEnv,
    "thread": ThreadVectorEnv,
    "asyncio": AsyncioVectorEnv,
    "process": partial(ProcessVectorEnv, workers=2),
}


@pytest.fixture(params=BACKENDS)
def vector(request):
    """Make a vector environment with the back end that is tested; close it afterwards."""
    made = []

    def make(n=3, mode=AutoresetMode.SAME_STEP, env=None, **kwargs):
        env = env or (AsyncTold if request.param == "asyncio" else Told)
        made.append(BACKENDS[request.param]([env.__name__] * n, [env] * n, mode, **kwargs))
        return made[-1]

    make.backend = request.param
    yield make
    for vec in made:
        vec.close()


def play(vec, seed, steps=23):
    """Return all that a vector environment says in steps of the same actions."""
    rng = random.Random(seed)
    said = [vec.reset(seed=seed)]
    for _ in range(steps):
        result = vec.step(["x" * rng.randint(1, 9) for _ in range(vec.num_envs)])
        said.append([list(map(str, column)) for column in result])
    said.append(vec.reset())
    return said


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_same_seeds_give_the_same_episodes_as_one_by_one(vector, mode):
    steps = 4 if mode in (AutoresetMode.DISABLED, AutoresetMode.ONCE) else 23
    expected = play(SyncVectorEnv([""] * 3, [Told] * 3, mode), 7, steps)
    assert play(vector(3, mode), 7, steps) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_games_play_the_same_on_every_back_end(backend):
    def played(name):
        with gem.make_vec(["game:Mastermind-v0-easy", "game:Sokoban-v0-easy"] * 2, seed=4, backend=name) as vec:
            moves = [vec.reset()]
            for turn in range(30):
                moves.append(list(map(str, vec.step([f"\\boxed{{{turn % 6 + 1} 2}}", "\\boxed{up}"] * 2))))
            return moves

    assert played(backend) == played("sync")


def test_steps_that_are_received_one_by_one_are_those_of_a_barrier(vector):
    with SyncVectorEnv([""] * 4, [Told] * 4) as other:
        other.reset(seed=1)
        expected = [other.step(["xx"] * 4) for _ in range(12)]
    vec = vector(4)
    vec.reset(seed=1)
    vec.send(["xx"] * 4)
    seen = {index: [] for index in range(4)}
    while any(len(rows) < 12 for rows in seen.values()):
        ready = vec.recv()
        for index, *row in zip(*ready, strict=True):
            seen[index].append(row)
        vec.send({index: "xx" for index in ready.indices if len(seen[index]) < 12})
    for index, rows in seen.items():
        assert rows == [[column[index] for column in step] for step in expected]


def test_recv_has_gym_dtypes_and_one_entry_a_step(vector):
    vec = vector(3)
    vec.reset(seed=0)
    vec.send({2: "x", 0: "x"})
    ready = vec.recv(min_count=2)
    assert sorted(ready.indices) == [0, 2]
    assert (ready.rewards.dtype, ready.terminated.dtype, ready.truncated.dtype) == (np.float64, np.bool_, np.bool_)
    assert (ready.rewards.shape, ready.terminated.shape, ready.truncated.shape) == ((2,), (2,), (2,))
    assert [len(ready.observations), len(ready.infos)] == [2, 2]


def test_min_count_is_at_most_what_is_under_way(vector):
    vec = vector(3)
    vec.reset(seed=0)
    vec.send({0: "x"})
    assert vec.recv(min_count=99).indices == [0]


def test_recv_without_anything_under_way_is_an_error(vector):
    with pytest.raises(ValueError, match="nothing is under way"):
        vector(1).recv()


def test_an_environment_that_is_under_way_takes_no_other_action(vector):
    vec = vector(2)
    vec.reset(seed=0)
    vec.send({1: "x"})
    for call in (lambda: vec.send({1: "x"}), lambda: vec.step(["x", "x"]), vec.reset, lambda: vec.call("turn")):
        with pytest.raises(ValueError, match="environment 1 is under way"):
            call()
    assert vec.step({0: "x"})[0][0].startswith("1 1 ")
    assert vec.recv().indices == [1]


def test_step_leaves_to_recv_what_was_sent_before(vector):
    vec = vector(3)
    vec.reset(seed=0)
    vec.send({2: "x"})
    observations, *_ = vec.step({0: "xx", 1: "xxx"})
    assert [text.split()[1] for text in observations] == ["2", "3"]
    ready = vec.recv()
    assert (ready.indices, ready.observations[0].split()[1]) == ([2], "1")


def test_some_are_reset_and_the_others_play_on(vector):
    vec = vector(3, "disabled")
    vec.reset(seed=5)
    vec.step(["x"] * 3)
    observations, infos = vec.reset(seed=5, only=[2, 0])
    assert infos == [{"turn": 0}] * 2
    expected = [Told().reset(seed=seed)[0] for seed in (7, 5)]
    assert observations == expected
    assert vec.reset(seed=[5], only=[2])[0] == [Told().reset(seed=5)[0]]
    assert [text.split()[0] for text in vec.step(["x"] * 3)[0]] == ["1", "2", "1"]


def test_resets_can_be_sent_and_received(vector):
    vec = vector(2, "disabled")
    vec.send_reset(seed=3)
    ready = vec.recv(min_count=2)
    by_index = dict(zip(ready.indices, ready.observations, strict=True))
    assert [by_index[i] for i in range(2)] == [Told().reset(seed=3 + i)[0] for i in range(2)]
    assert not ready.terminated.any()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_an_environment_that_raises_ends_its_own_episode_and_is_replaced(vector, mode):
    with SyncVectorEnv([""] * 3, [Told] * 3, mode) as other:
        other.reset(seed=5)
        expected = [other.step(["x"] * 3)[0] for _ in range(3)]
    vec = vector(3, mode)
    vec.reset(seed=5)
    vec.step(["x"] * 3)
    observations, rewards, terminated, truncated, infos = vec.step(["x", "raise", "x"])
    assert (terminated.tolist(), truncated.tolist()) == ([False] * 3, [False, True, False])
    assert infos[1]["error"] == "ValueError: told to"
    assert rewards[1] == 0
    assert [observations[0], observations[2]] == [expected[1][0], expected[1][2]]
    assert vec.faults == [0, 1, 0]
    if mode is AutoresetMode.SAME_STEP:
        assert observations[1].startswith("begin")
        assert infos[1]["final_info"] == {"error": "ValueError: told to"}
    elif mode is AutoresetMode.NEXT_STEP:
        assert vec.step({1: "ignored"})[0][0].startswith("begin")
    else:
        with pytest.raises(gem.ResetNeeded):
            vec.step({1: "x"})
        vec.reset(only=[1])
    observations, *_ = vec.step(["x"] * 3)
    assert [observations[0], observations[2]] == [expected[2][0], expected[2][2]]
    assert observations[1].startswith("1 1 ")


def test_a_fresh_environments_episodes_are_new_ones_that_follow_from_the_seed(vector):
    def play(vec):
        begun = [vec.reset(seed=5)[0][0]]
        for _ in range(3):
            begun += vec.step(["raise"])[0]
            vec.step(["x"])
        assert len(set(begun)) == 4
        vec.reset(seed=5)
        assert vec.step(["raise"])[0][0] not in begun  # its failures are counted on
        return begun

    assert play(vector(1)) == play(SyncVectorEnv([""], [Told]))


@pytest.mark.parametrize(("action", "error"), [("quit", "SystemExit: 3"), ("nonsense", "TypeError: ")])
def test_whatever_comes_out_of_a_step_is_its_own_affair(vector, action, error):
    vec = vector(2)
    vec.reset(seed=0)
    _, rewards, _, truncated, infos = vec.step([action, "x"])
    assert infos[0]["error"].startswith(error)
    assert (truncated.tolist(), rewards[0]) == ([True, False], 0.0)


def test_a_crash_loop_is_reported_and_the_others_can_be_received(vector):
    broken = AsyncBroken if vector.backend == "asyncio" else Broken
    fine = AsyncTold if vector.backend == "asyncio" else Told
    vec = BACKENDS[vector.backend]([""] * 3, [fine, partial(broken, "raise"), fine])
    with vec:
        vec.reset(seed=0)
        for _ in range(4):
            assert vec.step(["x"] * 3)[3].tolist() == [False, True, False]
        vec.send(["x"] * 3)
        with pytest.raises(CrashLoop, match=r"environment 1 failed 5 times in a row: ValueError: told to") as caught:
            vec.recv(min_count=3)
        assert caught.value.index == 1
        assert sorted(vec.recv(min_count=2).indices) == [0, 2]
        assert vec.faults == [0, 5, 0]
        assert vec.step({0: "x", 2: "x"})[3].tolist() == [False, False]


def test_failures_with_healthy_steps_in_between_are_no_crash_loop(vector):
    vec = vector(1)
    vec.reset(seed=0)
    for _ in range(12):
        assert vec.step(["raise"])[3].tolist() == [True]
        assert vec.step(["x"])[3].tolist() == [False]
    assert vec.faults == [12]


def test_resets_in_between_do_not_hide_a_crash_loop(vector):
    vec = vector(1, "next_step")
    vec.reset(seed=0)
    with pytest.raises(CrashLoop):
        step_often(vec, ["raise"])
    assert vec.faults == [5]


def step_often(vec, actions):
    for _ in range(20):
        vec.step(actions)


def test_a_step_before_the_reset_raises_for_its_caller(vector):
    vec = vector(2)
    for _ in range(7):  # and is no failure of the environment
        with pytest.raises(gem.ResetNeeded):
            vec.step({0: "x"})
    assert vec.faults == [0, 0]


def test_call_asks_every_environment(vector):
    vec = vector(3)
    vec.reset(seed=4)
    vec.step({1: "xxx"})
    assert vec.call("total") == [0, 3, 0]
    assert vec.call("total", only=[1]) == [3]
    assert vec.call("sample_random_action") == [env.sample_random_action() for env in _reset_by(4, 3)]
    with pytest.raises(RuntimeError, match="AttributeError"):
        vec.call("no_such_thing")
    assert vec.faults == [0, 0, 0]


def _reset_by(seed, n):
    envs = [Told() for _ in range(n)]
    for index, env in enumerate(envs):
        env.reset(seed=seed + index)
    return envs


class Reusing(gem.Env):
    """Has one info dict for ever."""

    asynchronous = True

    def __init__(self):
        super().__init__()
        self._info = {}

    def reset(self, seed=None):
        super().reset(seed)
        self._info.clear()
        return "begin", self._info

    def step(self, action):
        self._info["last"] = action
        return "end", 1.0, True, False, self._info

    async def reset_async(self, seed=None):
        return self.reset(seed)

    async def step_async(self, action):
        return self.step(action)


def test_the_last_info_of_an_episode_is_kept_from_an_environment_that_uses_its_dict_again(vector):
    vec = vector(1, env=Reusing)
    vec.reset(seed=0)
    for action in ("a", "b"):
        *_, infos = vec.step([action])
        assert infos[0]["final_info"] == {"last": action}


def test_what_is_closed_says_so(vector):
    vec = vector(2)
    vec.reset()
    vec.close()
    for use in (
        lambda: vec.step(["a", "b"]),
        lambda: vec.step({0: "a"}),
        lambda: vec.send({1: "b"}),
        lambda: vec.reset(),
        lambda: vec.recv(),
        lambda: vec.call("unwrapped"),
    ):
        with pytest.raises(RuntimeError, match="has been closed: make another"):
            use()
    vec.close()


def test_closing_twice_is_fine_and_with_steps_under_way(vector):
    with vector(3) as vec:
        vec.reset(seed=0)
        vec.send(["x"] * 3)
    vec.close()


def test_an_empty_dict_steps_nothing(vector):
    vec = vector(2)
    vec.reset(seed=0)
    observations, rewards, *_ = vec.step({})
    assert (observations, rewards.shape) == ([], (0,))


@pytest.mark.parametrize("actions", [["x"], ["x"] * 3, "xx", {2: "x"}, {-1: "x"}])
def test_actions_that_do_not_fit_are_refused_before_any_step(vector, actions):
    vec = vector(2)
    vec.reset(seed=0)
    for call in (vec.step, vec.send):
        with pytest.raises(ValueError, match=r"2 actions|no environment"):
            call(actions)
    assert vec.call("turn") == [0, 0]


def test_an_environment_that_cannot_be_built_raises_at_once():
    with pytest.raises(ValueError, match="must be below"):
        gem.make_vec("game:GuessTheNumber-v0", min_number=9, max_number=3)
    with pytest.raises(RuntimeError, match="cannot be built: ValueError: min_number must be below"):
        gem.make_vec("game:GuessTheNumber-v0", min_number=9, max_number=3, backend="process")


def test_modes_have_gymnasiums_names_too():
    assert [AutoresetMode(name) for name in ("next_step", "same_step", "disabled", "once")] == list(AutoresetMode)
    assert AutoresetMode("NextStep") is AutoresetMode.NEXT_STEP


class Declares:
    """Builds an environment that declares something."""

    def __init__(self, **declarations):
        self.kind = type("Kind", (Told,), declarations)

    def __call__(self):
        return self.kind()


SYNC = Declares(blocking=False)
THREAD = Declares()
ASYNC = Declares(asynchronous=True)
PROCESS = Declares(cpu_bound=True)


@pytest.mark.parametrize(
    ("builds", "deadline", "expected"),
    [
        ([SYNC], False, "sync"),
        ([SYNC], True, "thread"),
        ([THREAD], False, "thread"),
        ([ASYNC], True, "asyncio"),
        ([PROCESS], False, "process"),
        ([SYNC, THREAD, ASYNC], False, "thread"),
        ([SYNC, ASYNC], False, "asyncio"),
        ([SYNC, THREAD, ASYNC, PROCESS], False, "process"),
    ],
)
def test_auto_takes_what_the_most_demanding_environment_needs(builds, deadline, expected):
    for order in itertools.permutations(builds):
        assert choose_backend([str(id(build)) for build in order], order, deadline) == expected


def test_auto_looks_at_the_environments_with_their_wrappers():
    class Waits(gem.EnvWrapper):
        blocking = True

    assert isinstance(gem.make_vec("game:Mastermind-v0", backend="auto"), SyncVectorEnv)
    with gem.make_vec("game:Mastermind-v0", [Waits], backend="auto") as vec:
        assert isinstance(vec, ThreadVectorEnv)
    with gem.make_vec("game:Mastermind-v0", backend="auto", timeout=5) as vec:
        assert (isinstance(vec, ThreadVectorEnv), vec.timeout) == (True, 5)


def test_make_vec_takes_a_back_end_its_options_and_a_mode():
    with gem.make_vec(
        ["game:GuessTheNumber-v0-easy"] * 3,
        backend="process",
        autoreset_mode="next_step",
        workers=1,
        timeout=9,
        backend_kwargs={"memory_limit": 2 << 30},
        max_turns=1,
    ) as vec:
        assert isinstance(vec, ProcessVectorEnv)
        vec.reset()
        _, _, terminated, truncated, infos = vec.step(["\\boxed{0}"] * 3)
        assert (terminated | truncated).all()
        assert "final_obs" not in infos[0]


def test_make_vec_refuses_what_the_back_end_does_not_take():
    with pytest.raises(TypeError, match="the back end 'sync' takes no timeout"):
        gem.make_vec("game:Mastermind-v0", timeout=3)
    with pytest.raises(TypeError, match="the back end 'asyncio' takes no workers"):
        gem.make_vec("game:Mastermind-v0", backend="asyncio", workers=3)


def test_all_classes_are_in_one_place_and_imported_when_they_are_asked_for():
    code = "import sys, gem.vector; print(sorted(name for name in sys.modules if name.startswith('gem.vector')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['gem.vector']"
    assert {name: getattr(gem.vector, name).__name__ for name in gem.vector.__all__} == {
        n: n for n in gem.vector.__all__
    }
    assert gem.vector.ProcessVectorEnv is ProcessVectorEnv


def test_make_vec_names_the_back_ends_there_are():
    with pytest.raises(ValueError, match="no backend 'gpu'; there are auto, sync, thread, asyncio, process, ray"):
        gem.make_vec("game:Mastermind-v0", backend="gpu")


def test_async_mode_is_the_thread_back_end():
    from gem.vector.async_vector_env import AsyncVectorEnv

    with gem.make_vec("game:Mastermind-v0", async_mode=True) as vec:
        assert isinstance(vec, AsyncVectorEnv)
        vec.envs[0].reset(seed=1)


def test_recv_gives_up_waiting_when_its_time_is_up(vector):
    if vector.backend == "sync":
        pytest.skip("it has nothing to wait for")
    vec = vector(2)
    vec.reset(seed=0)
    vec.send({0: "sleep", 1: "x"})
    assert vec.recv(min_count=2, timeout=0.15).indices == [1]
    assert vec.recv(timeout=0).indices == []
    assert vec.recv().indices == [0]


def test_closing_while_thousands_of_calls_are_still_to_be_started_is_no_error(caplog):
    vec = AsyncioVectorEnv([""] * 1_000, [AsyncTold] * 1_000)
    vec.reset(seed=0)
    vec.send(["x"] * 1_000)
    vec.close()
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]
