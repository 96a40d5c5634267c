"""The command line: what it prints, and its exit codes."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import gem
from gem.cli import app
from gem.core import Env
from gem.envs.registration import ENV_REGISTRY, all_specs
from gem.testing.check_env import CHECKS


@pytest.fixture
def run():
    def invoke(*arguments, typed=None):
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, input=typed)

    return invoke


@pytest.fixture
def registered():
    before = dict(ENV_REGISTRY)
    yield gem.register
    ENV_REGISTRY.clear()
    ENV_REGISTRY.update(before)


def rows(output):
    return {words[0]: words[1:] for words in map(str.split, output.splitlines()) if words and ":" in words[0]}


def test_envs_lists_every_id_with_turns_and_rewards(run):
    table = rows(run("envs").stdout)
    assert set(table) == set(all_specs())
    assert table["game:GuessTheNumber-v0-easy"] == ["4", "-0.1", "to", "1"]
    assert table["game:Mastermind-v0-random"][0] == "varies"


@pytest.mark.parametrize("pattern", ["hanoi", "game:Tower*", "TowerofHanoi-v?"])
def test_envs_lists_the_ids_that_match(run, pattern):
    assert set(rows(run("envs", pattern).stdout)) == {env_id for env_id in all_specs() if "Hanoi" in env_id}


def test_envs_shows_why_an_environment_cannot_be_imported(run, registered):
    registered("test:Missing-v0", "no_such_package.maze:MazeEnv")
    result = run("envs", "test:")
    assert result.exit_code == 0
    assert "No module named 'no_such_package'" in result.stdout


def test_envs_without_a_match_is_an_error(run):
    result = run("envs", "chess")
    assert result.exit_code == 2
    assert result.stderr == "gem: no environment matches 'chess'; `gem envs` lists them all\n"


def test_play_boxes_what_is_typed_and_shows_rewards(run):
    secret = gem.make("game:GuessTheNumber-v0-easy")
    secret.reset(seed=5)
    wrong = 1 if secret.secret > 1 else 2
    typed = f"\n{wrong}\nI say \\boxed{{{secret.secret}}}\n"
    result = run("play", "game:GuessTheNumber-v0-easy", "--seed", "5", typed=typed)
    assert result.exit_code == 0
    assert "turn 1: reward 0, return 0" in result.stdout
    assert "turn 2: reward 1, return 1" in result.stdout
    assert result.stdout.endswith("Terminated, solved. Return 1.\n")


def test_play_ends_politely_when_nothing_more_is_typed(run):
    result = run("play", "game:Mastermind-v0-easy", "--seed", "0", typed="1 2\n")
    assert result.exit_code == 0
    assert result.stdout.endswith("The game was left.\n")


def test_play_random_plays_to_the_end_and_again_the_same(run):
    first, second = (run("play", "game:TowerofHanoi-v0-random", "--seed", "1", "--random") for _ in range(2))
    assert first.exit_code == 0
    assert "Truncated, not solved" in first.stdout
    assert first.stdout == second.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["play", "game:Mastermint-v0"],
            "there is no environment 'game:Mastermint-v0'. The nearest: game:Mastermind",
        ),
        (
            ["check", "game:Mastermint-v0"],
            "there is no environment 'game:Mastermint-v0'. The nearest: game:Mastermind",
        ),
        (["check"], "name the environments to check, or pass --all"),
        (["check", "--all", "game:Mastermind-v0"], "name the environments to check, or pass --all"),
    ],
)
def test_bad_input_is_one_line_on_stderr(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"gem: {message}")
    assert result.stderr.count("\n") == 1


def test_play_says_what_cannot_be_imported(run, registered):
    registered("test:Missing-v0", "no_such_package.maze:MazeEnv")
    result = run("play", "test:Missing-v0")
    assert result.exit_code == 1
    assert "No module named 'no_such_package'" in result.stderr


def test_check_shows_every_check(run):
    result = run("check", "game:GuessTheNumber-v1-easy")
    assert result.exit_code == 0
    assert result.stdout.count("✓") == len(CHECKS)
    assert result.stdout.endswith("1 of 1 passed\n")


class Unfinished(Env):
    def reset(self, seed=None):
        return super().reset(seed)

    def step(self, action):
        return None


def test_check_shows_what_failed_and_exits_with_1(run, registered):
    registered("test:Unfinished-v0", Unfinished)
    result = run("check", "test:Unfinished-v0", "game:TowerofHanoi-v0-easy")
    assert result.exit_code == 1
    assert "✓ make\n  ✗ interface: step returned None. Return a tuple of 5.\n" in result.stdout
    assert result.stdout.endswith("1 of 2 failed: test:Unfinished-v0\n")


def test_python_m_gem_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "gem", "play", "no:Such-v0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("gem: there is no environment 'no:Such-v0'")
    assert done.stderr.count("\n") == 1


def test_importing_gem_imports_no_command_line():
    code = "import gem, sys; print(sorted({'typer', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
