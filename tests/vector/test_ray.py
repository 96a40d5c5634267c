"""Environments as Ray actors."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from faulty_envs import FAULTS, Faulty
from vector_envs import Broken, Told

import gem
from gem.vector.sync_vector_env import SyncVectorEnv
from gem.vector.vector_env import AutoresetMode, CrashLoop


@pytest.fixture(scope="module")
def ray_vector():
    """Make vector environments on a Ray of two CPUs."""
    ray = pytest.importorskip("ray", reason="needs Ray: install gem-adapters[ray]")
    paths = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(gem.__file__).parents[1]}"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": paths})
    from gem.vector.ray_vector_env import RayVectorEnv

    yield RayVectorEnv
    ray.shutdown()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_same_seeds_give_the_same_episodes_as_one_by_one(ray_vector, mode):
    steps = 4 if mode in (AutoresetMode.DISABLED, AutoresetMode.ONCE) else 12
    said = []
    for kind in (ray_vector, SyncVectorEnv):
        with kind([""] * 3, [Told] * 3, mode) as vec:
            said.append([vec.reset(seed=7), *(list(map(str, vec.step(["x"] * 3))) for _ in range(steps))])
    assert said[0] == said[1]


def test_steps_are_received_as_they_are_ready(ray_vector):
    with ray_vector([""] * 3, [Told] * 3) as vec:
        vec.reset(seed=0)
        vec.send({0: "sleep", 1: "x", 2: "x"})
        assert sorted(vec.recv(min_count=2).indices) == [1, 2]
        assert vec.recv(timeout=0).indices == []
        assert vec.recv().indices == [0]
        assert vec.call("turn") == [1, 1, 1]
        with pytest.raises(AttributeError, match="use call"):
            _ = vec.envs


def test_what_raises_hangs_or_ends_its_process_costs_its_own_episode_only(ray_vector):
    with SyncVectorEnv([""] * 3, [partial(Told, 9)] * 3) as other:
        other.reset(seed=5)
        steps = [other.step(["x"] * 3)[0] for _ in range(4)]
    with ray_vector([""] * 3, [partial(Told, 9)] * 3, timeout=20) as vec:
        vec.reset(seed=5)
        for turn, (action, error) in enumerate(
            [
                ("raise", "ValueError: told to"),
                ("exit", "Actor"),
                ("hang", "no answer within 2 s"),
                ("x", None),
            ]
        ):
            vec.timeout = 2 if action == "hang" else 20  # Ray takes seconds to notice a death
            observations, _, _, truncated, infos = vec.step(["x", action, "x"])
            assert [observations[0], observations[2]] == [steps[turn][0], steps[turn][2]]
            assert truncated.tolist() == [False, error is not None, False]
            assert str(infos[1].get("error")).startswith(str(error))
        assert (vec.faults, vec.restarts) == ([0, 3, 0], 2)


def test_a_crash_loop_is_reported(ray_vector):
    with ray_vector([""], [partial(Broken, "raise")]) as vec:
        vec.reset(seed=0)
        for _ in range(4):
            vec.step(["x"])
        with pytest.raises(CrashLoop, match="environment 0 failed 5 times in a row: ValueError: told to"):
            vec.step(["x"])


def test_an_environment_that_cannot_be_built_raises(ray_vector):
    with pytest.raises(RuntimeError, match="cannot be built: ValueError: min_number must be below"):
        gem.make_vec("game:GuessTheNumber-v0", min_number=9, max_number=3, backend="ray")


def test_make_vec_takes_options_of_actors_and_functions_that_only_this_process_knows(ray_vector):
    wrappers = [lambda env: gem.EnvWrapper(env)]
    with gem.make_vec(
        ["game:Mastermind-v0"] * 2, wrappers, backend="ray", seed=3, backend_kwargs={"actor_options": {"num_cpus": 0.5}}
    ) as vec:
        assert vec.reset() == gem.make_vec(["game:Mastermind-v0"] * 2, seed=3).reset()


def test_without_ray_the_error_names_the_command():
    code = "import sys; sys.modules['ray'] = None; import gem; gem.make_vec('game:Mastermind-v0', backend='ray')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("ImportError: the back end ray needs Ray: install gem-adapters[ray]\n")


def test_what_breaks_the_contract_costs_its_own_episode_only(ray_vector):
    names = ["unspeakable", "long", "own", "four", "nan", "terminated"]
    builds = [*(partial(Faulty, name) for name in names), partial(Faulty, "fork", "harmless")]
    with ray_vector([""] * len(builds), builds, timeout=60) as vec:
        vec.reset(seed=5)
        observations, _, _, truncated, infos = vec.step(["x"] * len(builds))
        for name, info in zip(names, infos, strict=False):
            assert info["error"].startswith(FAULTS[name][1])
            assert len(info["error"]) < 5000
        assert truncated.tolist() == [True] * len(names) + [False]
        assert observations[-1] == "forked"
