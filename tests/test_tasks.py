import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gem.envs.game_env.guess_the_number import GuessTheNumberEnv
from gem.tasks import SPLITS, Task, check_split, load_tasks, make_tasks

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


UNSANDBOXED = [
    {"sandbox_type": "none"},
    {"sandbox_type": "plain"},
    {"backend": "plain"},
    {"backend": " Plain"},
    {"options": [{"sandbox_type": "none"}]},
]


@pytest.mark.parametrize("env_kwargs", UNSANDBOXED)
def test_a_task_that_asks_for_no_sandbox_is_refused(env_kwargs, monkeypatch, registered):
    registered("test:Any-v0", lambda **arguments: GuessTheNumberEnv())
    with pytest.raises(ValueError, match=r"without a sandbox.*GEM_ALLOW_UNSANDBOXED=1"):
        Task("test:Any-v0", 0, env_kwargs).make()
    monkeypatch.setenv("GEM_ALLOW_UNSANDBOXED", "1")
    assert isinstance(Task("test:Any-v0", 0, env_kwargs).make(), GuessTheNumberEnv)


@pytest.mark.parametrize("env_kwargs", [{}, {"sandbox_type": "auto"}, {"backend": "bubblewrap"}, {"style": "plain"}])
def test_other_arguments_are_not_refused(env_kwargs, registered):
    registered("test:Any-v0", lambda **arguments: GuessTheNumberEnv())
    Task("test:Any-v0", 0, env_kwargs).make()


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


ID = "game:Mastermind-v0-easy"


def test_an_expression_names_a_range_of_seeds():
    assert load_tasks(f"env={ID},seeds=3:6") == make_tasks(ID, range(3, 6))
    assert load_tasks(f"env={ID},seeds=3:6", "eval") == make_tasks(ID, range(3, 6), split="eval")


def test_an_expression_carries_arguments_of_the_environment():
    (task,) = load_tasks("env=a:B-v0,seeds=0:1,size=3,gamma=0.5,hints=true,level=hard")
    assert task.env_kwargs == {"size": 3, "gamma": 0.5, "hints": True, "level": "hard"}


def test_lists_and_texts_in_an_expression_are_json():
    expression = (
        'env=a:B-v0,seeds=0:1,room=[6, 6],tools=["python","search"],text="1;2,3=4";env=b:C-v0,seeds=0:1,text=a b'
    )
    first, second = load_tasks(expression)
    assert first.env_kwargs == {"room": [6, 6], "tools": ["python", "search"], "text": "1;2,3=4"}
    assert (second.env_id, second.env_kwargs) == ("b:C-v0", {"text": "a b"})


@pytest.mark.parametrize(
    "expression",
    [
        f"env={ID}",
        f"env={ID},seeds=5",
        f"env={ID},seeds=a:b",
        f"env={ID},seeds=:9",
        f"env={ID},seed=0:9",
        f"env={ID},game:Wordle-v0,seeds=0:2",
        f"env={ID},seeds=0:2,numbers=[1,2",
        f"env={ID},seeds=0:2,numbers=[1,2]3",
        f"env={ID},seeds=0:2,tools=python,search",
        f"env={ID},seeds=0:2,",
        f"env={ID},seeds=0:2,seeds=4:6",
        "env=,seeds=0:2",
        f"env={ID},seeds=0:2;env={ID}",
    ],
)
def test_an_expression_that_cannot_be_read_says_what_was_expected(expression):
    with pytest.raises(ValueError, match="env=<id>,seeds=<first>:<end>"):
        load_tasks(expression)


def test_an_expression_without_a_seed_holds_no_task():
    with pytest.raises(ValueError, match="holds no task"):
        load_tasks(f"env={ID},seeds=4:4")


TASKS = [Task(ID, 1), Task(ID, 2, {"code_length": 3}), Task("game:TowerofHanoi-v0", 0, {"num_disks": 4})]


def test_tasks_are_read_from_json_lines(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(task.to_json() for task in TASKS) + "\n\n")
    assert load_tasks(path) == TASKS


@pytest.mark.parametrize("as_text", [True, False])
def test_tasks_are_read_from_parquet(tmp_path, as_text):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"env_id": t.env_id, "seed": t.seed, "env_kwargs": json.dumps(t.env_kwargs)} for t in TASKS]
    if not as_text:
        rows = [{"env_id": t.env_id, "seed": t.seed, "env_kwargs": {"code_length": 3}} for t in TASKS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "tasks.parquet")
    expected = TASKS if as_text else [Task(t.env_id, t.seed, {"code_length": 3}) for t in TASKS]
    assert load_tasks(tmp_path / "tasks.parquet") == expected


def test_rows_without_a_split_get_the_one_that_is_asked_for(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"env_id": ID, "seed": 1}))
    assert load_tasks(path, "eval") == [Task(ID, 1, split="eval")]


@pytest.mark.parametrize(("row_split", "split"), [("eval", "train"), ("test", "train"), ("train", "eval")])
def test_tasks_of_one_split_are_not_taken_for_the_other(tmp_path, row_split, split):
    path = tmp_path / "tasks.jsonl"
    path.write_text(Task(ID, 1, split=row_split).to_json())
    with pytest.raises(ValueError, match=f"task 1, .* is of the split '{row_split}', where '{split}' is wanted"):
        load_tasks(path, split)
    with pytest.raises(ValueError, match="is wanted"):
        load_tasks(f"env={ID},seeds=0:2,split={row_split}", split)


def test_a_test_split_may_be_evaluated_on():
    assert load_tasks(f"env={ID},seeds=0:1,split=test", "eval")[0].split == "test"


def test_a_bad_row_is_named(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(Task(ID, 1).to_json() + '\n{"env": "x"}')
    with pytest.raises(ValueError, match=r"row 2 of .* is no task"):
        load_tasks(path)


def test_a_file_of_another_kind_or_none_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"expected a \.jsonl or \.parquet file"):
        load_tasks("tasks.csv")
    with pytest.raises(FileNotFoundError):
        load_tasks(tmp_path / "none.jsonl")


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(Task(ID, 1).to_json() + "\n{")
    with pytest.raises(ValueError, match=r"line 2 of .* is no task"):
        load_tasks(path)


OTHER = "game:Wordle-v0"


@pytest.mark.parametrize("as_list", [True, False])
def test_several_sources_are_mixed_evenly(tmp_path, as_list):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(task.to_json() for task in TASKS))
    sources = [f"env={ID},seeds=10:19", f"env={OTHER},seeds=0:3,split=train", str(path)]
    tasks = load_tasks(sources if as_list else ";".join(sources))
    alone = [load_tasks(source) for source in sources]
    for start in range(0, 15, 5):  # each batch is mixed as the whole
        shares = [sum(task in part for task in tasks[start : start + 5]) for part in alone]
        assert shares == [3, 1, 1]
    for part in alone:
        assert [task for task in tasks if task in part] == part
    assert load_tasks(sources) == load_tasks(sources)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_any_beginning_of_a_mixture_has_every_source_s_share(sizes):
    tasks = load_tasks([f"env=x:{k},seeds=0:{size}" for k, size in enumerate(sizes)])
    assert len(tasks) == sum(sizes)
    for k, size in enumerate(sizes):
        seen = 0
        for number, task in enumerate(tasks, start=1):
            seen += task.env_id == f"x:{k}"
            assert abs(seen - size * number / sum(sizes)) <= len(sizes)


def test_equal_sources_take_turns():
    tasks = load_tasks([f"env={ID},seeds=0:3", f"env={OTHER},seeds=5:8"])
    assert [(task.env_id, task.seed) for task in tasks] == [
        (ID, 0),
        (OTHER, 5),
        (ID, 1),
        (OTHER, 6),
        (ID, 2),
        (OTHER, 7),
    ]


def test_every_source_is_checked(tmp_path):
    good = f"env={ID},seeds=0:3"
    for bad, message in [
        (f"env={ID},seeds=4:4", "holds no task"),
        (f"env={ID},seeds=0:2,split=eval", "is of the split 'eval', where 'train' is wanted"),
        ("tasks.csv", r"expected a \.jsonl"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_tasks(f"{good};{bad}")
        with pytest.raises(ValueError, match=message):
            load_tasks([good, bad])


@pytest.mark.parametrize("source", ["", ";", [], [""]])
def test_no_source_is_an_error(source):
    with pytest.raises(ValueError, match="names no tasks"):
        load_tasks(source)


@pytest.mark.parametrize("split", ["eval", "test"])
def test_what_is_trained_on_is_not_evaluated_on(split):
    evaluated = [Task(ID, 1, split="eval"), Task(ID, 2, split="test")]
    check_split(evaluated, split)
    check_split([Task(ID, 1)], "train")
    with pytest.raises(
        ValueError, match=f"task 3, {ID} with seed 7, is of the split 'train', where '{split}' is wanted"
    ):
        check_split([*evaluated, Task(ID, 7)], split)
    with pytest.raises(ValueError, match="where 'train' is wanted"):
        check_split(evaluated, "train")
