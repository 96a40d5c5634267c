import pytest

from gem.tasks import load_tasks, make_tasks
from gem.training.args import TrainingArgs


def test_defaults_depend_on_the_model():
    embedded, other = TrainingArgs(), TrainingArgs(model="some/model")
    embedded.fill_in()
    other.fill_in()
    assert (embedded.lr, embedded.max_new_tokens) == (1e-3, 16)
    assert (other.lr, other.max_new_tokens) == (1e-6, 64)


def test_what_is_given_is_kept():
    args = TrainingArgs(lr=0.5, max_new_tokens=3, max_turns=2)
    args.fill_in()
    assert (args.lr, args.max_new_tokens, args.max_turns) == (0.5, 3, 2)


def test_every_group_has_a_task_of_its_own_and_another_seed_plays_other_tasks():
    first, second = TrainingArgs(seed=0), TrainingArgs(seed=1)
    assert len(first.task_seeds) == 80 * 8
    assert not set(first.task_seeds) & set(second.task_seeds)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"batch_size": 10, "group_size": 4}, "--batch-size must be a multiple of --group-size"),
        ({"batch_size": 1, "group_size": 1}, "--batch-size must be a multiple of --group-size"),
        ({"steps": 0}, "--steps must be positive, got 0"),
        ({"batch_size": -8}, "--batch-size must be positive, got -8"),
        ({"max_turns": 0}, "--max-turns must be positive, got 0"),
        ({"lr": 0.0}, "--lr must be positive, got 0"),
        ({"gamma": 2.0}, "gamma, the discount per turn, is from 0 to 1, got 2.0"),
        ({"gamma": -1.0}, "gamma, the discount per turn, is from 0 to 1, got -1.0"),
        ({"env": " , "}, "--env names no environment"),
        ({"env": "game:Wordle-v0,game:Wurdle-v0"}, "no environment 'game:Wurdle-v0'"),
        ({"seed": -1}, "seed must be a non-negative integer"),
        ({"seed": 2_000_000}, "a task's seed is an integer from 0 to 2"),
    ],
)
def test_arguments_that_cannot_work_are_refused_with_what_to_do(args, message):
    with pytest.raises(ValueError, match=message):
        TrainingArgs(**args).fill_in()


def test_tools_go_with_the_tasks_into_every_trainer():
    args = TrainingArgs(env="qa:Sample", tools="python,search")
    assert args.env_kwargs == {"tools": "python,search"}
    for task in [
        *make_tasks(args.env, [0], args.env_kwargs),
        *args.tasks(range(1)),
        *load_tasks(args.task_source(range(1))),
    ]:
        assert [tool.tool_type for tool in task.make().tools] == ["python_code", "search"]
    with pytest.raises(ValueError, match="no tool 'moon'"):
        TrainingArgs(tools="moon").fill_in()


def test_several_environments_are_played_in_equal_shares():
    args = TrainingArgs(env="game:Wordle-v0, game:Hangman-v0,game:Mastermind-v0", steps=2, batch_size=20, group_size=4)
    args.fill_in()
    tasks = args.tasks(args.task_seeds)
    assert len(tasks) == 10
    assert [task.env_id for task in tasks[:3]] == args.env_ids
    assert sorted(sum(task.env_id == env_id for task in tasks) for env_id in args.env_ids) == [3, 3, 4]
    assert args.tasks(range(2), "eval") == [
        *make_tasks("game:Wordle-v0", [0], split="eval"),
        *make_tasks("game:Hangman-v0", [0], split="eval"),
    ]


def test_a_single_environment_has_all_seeds():
    args = TrainingArgs(env="game:Wordle-v0")
    assert args.tasks(range(7, 11)) == make_tasks("game:Wordle-v0", range(7, 11))
