"""The package of the jobs does what the jobs rely on."""

import subprocess
import sys

import pytest

import gem
import gem.tools
from gem.tasks import Task, make_tasks
from gem.testing import check_env


def begin(tasks):
    """Play tasks to the end; return which failed."""
    failed = []
    for number, task in enumerate(tasks):
        try:
            with task.make() as env:
                env.reset(seed=task.reset_seed)
                while not any(env.step("?")[2:4]):
                    pass
        except ConnectionError:
            failed.append(number)
    return failed


def test_its_environments_are_found_by_their_entry_points_and_conform():
    import mylab

    check_env("mylab:Near-v0")
    check_env(lambda: mylab.TurnCost(gem.make("mylab:Near-v0")))
    assert isinstance(gem.make("mylab:Near-v0-tool"), gem.tools.ToolEnvWrapper)


def test_processes_find_them_too():
    code = "import gem, mylab; print(gem.make('mylab:Flaky-v0', fails='seed').fails)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "seed\n"


def test_the_wrapper_costs_and_the_tool_takes_the_first_number():
    import mylab

    with mylab.make_env(Task("mylab:Near-v0", 3)) as env:
        env.reset(seed=3)
        observation, reward, _, _, info = env.step("\\boxed{4}")
        assert (observation.split(".")[0], reward, info["tool_type"]) == ("It is even", 0.0, "parity")
        _, reward, _, _, info = env.step("?")
        assert (reward, info["use_tool"]) == (pytest.approx(-0.15), False)


@pytest.mark.parametrize("fails_in", [0, 1, 2, 3])
def test_by_seed_all_episodes_of_some_seeds_fail(fails_in):
    import mylab.envs

    seeds = [seed for seed in range(64) for _ in range(4)]
    failed = begin(make_tasks("mylab:Flaky-v0", seeds, {"fails": "seed", "fails_in": fails_in}))
    assert failed == [number for number, seed in enumerate(seeds) if mylab.envs.fails_always(seed)]
    assert 0 < len(failed) < len(seeds) / 4


def test_by_member_one_of_eight_fails_and_none_twice_in_a_group():
    seeds = [seed for seed in range(32) for _ in range(4)]
    failed = begin(make_tasks("mylab:Flaky-v0", seeds, {"fails": "member"}))
    assert len(failed) == len(seeds) / 8
    assert len({seeds[number] for number in failed}) == len(failed)


def test_every_eighth_attempt_counts_over_processes(tmp_path):
    kwargs = {"fails": "every", "attempts": str(tmp_path)}
    code = f"import gem; [gem.make('mylab:Flaky-v0', **{kwargs!r}).reset() for _ in range(5)]"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert begin(make_tasks("mylab:Flaky-v0", range(12), kwargs)) == [2, 10]


def test_by_chance_some_fail():
    assert 0 < len(begin(make_tasks("mylab:Flaky-v0", [0] * 256))) < 80


def test_another_way_to_fail_is_refused():
    with pytest.raises(ValueError, match="fails is chance"):
        gem.make("mylab:Flaky-v0", fails="often")
