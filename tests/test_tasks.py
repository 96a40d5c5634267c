import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gem.tasks import SPLITS, Task, make_tasks

SEEDS = st.integers(0, 2**40 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.text(), SEEDS, st.dictionaries(st.text(), JSON, max_size=3), st.sampled_from(SPLITS))
def test_task_survives_json_as_one_line(env_id, seed, env_kwargs, split):
    task = Task(env_id, seed, env_kwargs, split)
    line = task.to_json()
    assert "\n" not in line
    assert Task.from_json(line) == task


@given(SEEDS, SEEDS, st.permutations(SPLITS))
@example(2**39, 0, list(SPLITS))
@example(2**40 - 1, 0, list(SPLITS))
def test_two_splits_never_share_a_reset_seed(seed, other, splits):
    assert Task("x", seed, split=splits[0]).reset_seed != Task("x", other, split=splits[1]).reset_seed


@given(SEEDS, SEEDS, st.sampled_from(SPLITS))
def test_within_a_split_reset_seeds_differ_exactly_where_seeds_do(seed, other, split):
    same = Task("x", seed, split=split).reset_seed == Task("x", other, split=split).reset_seed
    assert same == (seed == other)


def test_train_reset_seed_is_the_seed():
    assert Task("x", 12).reset_seed == 12


@pytest.mark.parametrize("seed", [-1, 2**40, None])
def test_seed_out_of_range_is_a_value_error(seed):
    with pytest.raises(ValueError, match="integer"):
        Task("x", seed)


@pytest.mark.parametrize("seed", ["7", 7.0, True])
def test_seed_that_is_no_integer_is_a_type_error(seed):
    with pytest.raises(TypeError, match="integer"):
        Task("x", seed)


def test_unknown_split_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"train, eval, test.*'dev'"):
        Task("x", 1, split="dev")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[1, 2]",
        "{}",
        '{"env_id": "x"}',
        '{"env_id": "x", "seed": "7"}',
        '{"env_id": "x", "seed": -7}',
        '{"env_id": "x", "seed": 7, "colour": "red"}',
        '{"env_id": "x", "seed": 7, "split": "dev"}',
    ],
)
def test_text_that_is_no_task_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"not a task|seed|split"):
        Task.from_json(text)


def test_make_builds_the_env_with_the_tasks_arguments():
    task = Task("game:GuessTheNumber-v0-easy", 3, {"max_number": 99})
    observation, _ = task.make().reset(seed=task.reset_seed)
    assert "from 1 to 99" in observation


def test_make_tasks_gives_a_task_a_seed():
    tasks = make_tasks("x", range(3), {"a": 1}, split="eval")
    assert tasks == [Task("x", seed, {"a": 1}, "eval") for seed in range(3)]
    assert json.loads(tasks[2].to_json()) == {
        "env_id": "x",
        "seed": 2,
        "env_kwargs": {"a": 1},
        "split": "eval",
    }
