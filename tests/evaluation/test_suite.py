"""Suites name tasks; those that ship can be played."""

import pytest

pytest.importorskip("yaml")

from gem.envs.datasets import needs_hub
from gem.evaluation.suite import load_suite, shipped
from gem.registry import find_spec


def write(folder, text):
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def test_a_suite_is_read(tmp_path):
    path = write(
        tmp_path,
        """
        tasks:
          - {env: game:GuessTheNumber-v1-easy, count: 3}
          - {env: qa:Sample, count: all, kwargs: {extract_boxed: true}}
          - {env: game:Wordle-v0, seeds: [7, 9]}
        """,
    )
    tasks = load_suite(path, "test")
    assert {task.split for task in tasks} == {"test"}
    of_qa = [task for task in tasks if task.env_id == "qa:Sample"]
    with of_qa[0].make() as env:
        assert len(of_qa) == env.size
    assert of_qa[0].env_kwargs == {"extract_boxed": True}
    assert [task.seed for task in tasks if task.env_id == "game:Wordle-v0"] == [7, 9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [", "is no YAML"),
        ("- 1", "no list of tasks"),
        ("tasks: []", "no list of tasks"),
        ("tasks: [{count: 3}]", "entry 1 of .*has an env"),
        ("tasks: [{env: 'game:Wordle-v0'}, {env: 'game:Chess-v0'}]", "entry 2 of .*there is no environment"),
        ("tasks: [{env: 'game:Wordle-v0', number: 3}]", "'number' is not one of"),
        ("tasks: [{env: 'game:Wordle-v0', count: 0}]", "count is a number"),
        ("tasks: [{env: 'game:Wordle-v0', count: many}]", "count is a number"),
        ("tasks: [{env: 'game:Wordle-v0', count: all}]", "is no data set"),
        ("tasks: [{env: 'game:Wordle-v0', count: 10000000}]", "count is a number"),
        ("tasks: [{env: 'game:Wordle-v0', seeds: []}]", "seeds is a list"),
        ("a: &a [1, 2]\ntasks: [{env: 'game:Wordle-v0', kwargs: {x: *a}}]", "aliases"),
        ("tasks: " + "[" * 5000, "is no YAML"),
        ("tasks: !!python/object/apply:os.system ['true']", "is no YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_suite(write(tmp_path, text))


def test_there_is_no_such_suite():
    with pytest.raises(FileNotFoundError):
        load_suite("no-such-suite")


@pytest.mark.parametrize("name", shipped())
def test_suites_of_the_package_name_environments_that_there_are(name):
    import yaml

    rows = yaml.safe_load(shipped()[name].read_text())["tasks"]
    specs = [find_spec(row["env"]) for row in rows]
    if not any(map(needs_hub, specs)):
        assert len(load_suite(name)) == 600
    else:
        assert all(map(needs_hub, specs))
