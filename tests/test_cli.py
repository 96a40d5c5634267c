"""The command line: what it prints, and its exit codes."""

import contextlib
import json
import subprocess
import sys
import time

import psutil
import pytest
from processes import descendants, runs
from typer.testing import CliRunner

import gem
from gem.cli import app
from gem.core import Env
from gem.registry import all_specs
from gem.rollout import Episode, Turn, read_jsonl, write_jsonl
from gem.rollout.atif import to_atif
from gem.sandbox import Description
from gem.tasks import Task
from gem.testing.check_env import CHECKS


@pytest.fixture
def run():
    def invoke(*arguments, typed=None):
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, input=typed)

    return invoke


def rows(output):
    return {words[0]: words[1:] for words in map(str.split, output.splitlines()) if words and ":" in words[0]}


def test_envs_lists_every_id_with_turns_and_rewards(run):
    table = rows(run("envs").stdout)
    assert set(table) == set(all_specs())
    assert table["game:GuessTheNumber-v0-easy"] == ["4", "-0.1", "to", "1"]
    assert table["game:Mastermind-v0-random"][0] == "varies"
    assert table["math:GSM8K"][-2:] == ["a", "hub"]


@pytest.mark.parametrize("pattern", ["towerofhanoi", "game:Tower*", "TowerofHanoi-v?"])
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
    wrong = 1 if secret.game_number > 1 else 2
    typed = f"\n{wrong}\nI say \\boxed{{{secret.game_number}}}\n"
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


def test_a_typed_answer_is_put_into_the_form_that_is_asked_for(run):
    for typed in ("au", "<answer>Au</answer>"):
        assert "Terminated, solved. Return 1." in run("play", "qa:Sample", "--seed", "0", typed=f"{typed}\n").stdout


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


def test_bench_shows_steps_a_second_by_back_end_and_size(run):
    result = run("bench", "game:GuessTheNumber-v0-easy", "--sizes", "1,3", "--seconds", "0.03")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0] == ["steps", "per", "second", "1", "3"]
    assert [line[0] for line in lines[2:]] == ["sync", "thread", "process"]
    assert all(int(cell.replace(",", "")) > 0 for line in lines[2:] for cell in line[1:])


def test_bench_measures_the_back_ends_that_are_named(run):
    result = run("bench", "qa:Sample", "--sizes", "2", "--backends", "sync,asyncio", "--seconds", "0.03")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[3:5]] == ["sync", "asyncio"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "gpu"], "there is no backend 'gpu'; there are sync, thread, asyncio, process, ray"),
        (["--sizes", "0"], "--sizes takes whole numbers from 1, separated by commas, not '0'"),
        (["--sizes", "many"], "--sizes takes whole numbers from 1, separated by commas, not 'many'"),
    ],
)
def test_bench_refuses_what_it_cannot_measure(run, arguments, message):
    result = run("bench", "game:GuessTheNumber-v0-easy", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"gem: {message}\n")


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


def test_check_all_says_what_it_leaves_out_and_why(run, monkeypatch):
    specs = {
        i: all_specs()[i] for i in ("math:GSM8K", "game:TowerofHanoi-v0-easy", "rg:game_of_life_halting", "qa:Sample")
    }
    monkeypatch.setattr("gem.cli.check.all_specs", lambda: specs)
    result = run("check", "--all", "--jobs", "1")
    assert result.exit_code == 0
    assert "not checked, their scorers are hackable: rg:game_of_life_halting\n" in result.stdout
    assert "not checked, they need a hub: math:GSM8K\n" in result.stdout
    assert result.stdout.endswith("2 of 2 passed\n")


def test_checks_in_other_processes_say_what_checks_here_say(run):
    ids = ["game:TowerofHanoi-v0-easy", "game:GuessTheNumber-v1-easy"]
    here, there = run("check", *ids), run("check", *ids, "--jobs", "2")
    assert there.exit_code == 0
    assert there.stdout == here.stdout
    assert "✓ solver (won 10 of 10)" in there.stdout


def computed(pid):
    """Return the seconds that a process has computed; 0 if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).cpu_times().user
    return 0


def test_check_that_is_killed_leaves_no_process():
    """Its processes compute for half a minute, and would go on."""
    ids = [f"game:Game2048-v{n}-{size}" for n in (0, 1) for size in ("hard", "extreme-hard")]
    command = [sys.executable, "-m", "gem", "check", *ids, "--jobs", "2", "--thorough"]
    check = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while sum(computed(pid) > 1 for pid in descendants(check.pid)) < 2:
        assert time.monotonic() < deadline, "two processes compute"
        time.sleep(0.1)
    started = descendants(check.pid)
    check.terminate()
    check.wait(10)
    deadline = time.monotonic() + 10
    while any(map(runs, started)):
        assert time.monotonic() < deadline, [pid for pid in started if runs(pid)]
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (Description("bubblewrap", "", ("network",), ()), 0, "sandbox: bubblewrap\n  ✓ keeps out: network\n"),
        (Description("bubblewrap", "", (), ("network",)), 1, "  ✗ lets through: network\n"),
        (Description("", "bubblewrap is not installed", (), ()), 1, "gem: bubblewrap is not installed\n"),
    ],
)
def test_doctor_says_what_the_sandbox_keeps_out(run, monkeypatch, found, code, said):
    monkeypatch.setattr("gem.sandbox.describe", lambda: found)
    result = run("doctor")
    assert result.exit_code == code
    assert said in result.stdout + result.stderr


def test_python_m_gem_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "gem", "play", "no:Such-v0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("gem: there is no environment 'no:Such-v0'")
    assert done.stderr.count("\n") == 1


def test_importing_gem_imports_no_command_line():
    code = "import gem, sys; print(sorted({'typer', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def recorded(seed, *actions, env_id="game:GuessTheNumber-v1-easy"):
    """Play actions as the runner does, with their characters as tokens."""
    episode = Episode(Task(env_id, seed))
    with episode.task.make() as env:
        episode.first_observation, _ = env.reset(seed=seed)
        prompt_ids = [1, 2, 3]
        for action in actions:
            ids = [ord(character) for character in action]
            answer = env.step(action)
            episode.turns.append(Turn(prompt_ids, ids, [-0.5] * len(ids), "stop", action, *answer))
            prompt_ids = [*prompt_ids, *ids, 4]
    return episode


@pytest.fixture
def games():
    return [recorded(seed, "\\boxed{2}", "so \\boxed{5}") for seed in range(3)]  # the numbers are 7, 3 and 1


@pytest.fixture
def file(tmp_path):
    def write(name, episodes):
        write_jsonl(tmp_path / name, episodes)
        return str(tmp_path / name)

    return write


def test_diff_of_equal_files(run, file, games):
    result = run("diff", file("a", games), file("b", games))
    assert (result.exit_code, result.stdout) == (0, "3 of 3 episodes are the same\n")


def test_diff_shows_where_episodes_part(run, file, games):
    a = file("a", games)
    games[1].turns[1].response_ids[0] = 9
    games[1].turns[1].action = "no"
    games[2].turns[0].reward = 0.5
    result = run("diff", a, file("b", games))
    assert result.exit_code == 1
    assert result.stdout == (
        "episode 2: game:GuessTheNumber-v1-easy, train seed 1\n"
        "  turn 2: sampled token at position 13\n"
        "    a: ... 100 123 50 125 4 [115] 111 32 92 98 111 ... (sampled)\n"
        "    b: ... 100 123 50 125 4 [9] 111 32 92 98 111 ... (sampled)\n"
        "  turn 2: action\n"
        "    a: 'so \\\\boxed{5}'\n"
        "    b: 'no'\n"
        "episode 3: game:GuessTheNumber-v1-easy, train seed 2\n"
        "  turn 1: reward\n"
        "    a: 0.0\n"
        "    b: 0.5\n"
        "2 of 3 episodes differ\n"
    )


def test_diff_shows_long_texts_around_the_first_difference(run, file, games):
    games[0].turns[0].observation = "x" * 1000 + "left" + "y" * 1000
    a = file("a", games)
    games[0].turns[0].observation = "x" * 1000 + "right" + "y" * 1000
    result = run("diff", a, file("b", games))
    assert f"    a: ...{'x' * 50}left{'y' * 46}...\n    b: ...{'x' * 50}right{'y' * 45}...\n" in result.stdout


def test_diff_shows_the_text_of_tokens(run, file, games, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    first, second = tokenizer("7", add_special_tokens=False)["input_ids"][0], tokenizer("8")["input_ids"][0]
    games[0].turns[0].response_ids[0] = first
    a = file("a", games)
    games[0].turns[0].response_ids[0] = second
    result = run("diff", a, file("b", games), "--tokenizer", str(tmp_path / "tokenizer"))
    assert f"[{first} '7']" in result.stdout
    assert f"[{second} '8']" in result.stdout


def test_diff_without_the_tokenizer_is_an_error(run, file, games, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "empty").mkdir()
    path = file("a", games)
    result = run("diff", path, path, "--tokenizer", str(tmp_path / "empty"))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"gem: cannot load the tokenizer {tmp_path / 'empty'}: ")
    assert result.stderr.count("\n") == 1


def test_diff_shows_a_mask(run, file, games):
    a = file("a", games)
    games[0].turns[0].response_ids.append(4)
    games[0].turns[0].logprobs.append(-0.5)
    result = run("diff", a, file("b", games))
    assert "  turn 1: mask at position 12\n" in result.stdout
    assert "[4] (not sampled)\n" in result.stdout
    assert "[4] (sampled)\n" in result.stdout


def test_diff_of_files_of_different_lengths(run, file, games):
    a, b = file("a", games), file("b", games[:2])
    result = run("diff", a, b)
    assert result.exit_code == 1
    assert result.stdout == f"0 of 2 episodes differ\n{a} has 3 episodes, {b} has 2\n"


def test_diff_takes_a_tolerance(run, file, games):
    a = file("a", games)
    games[0].turns[0].logprobs[0] += 0.01
    b = file("b", games)
    assert run("diff", a, b).exit_code == 1
    assert run("diff", a, b, "--tolerance", "0.1").exit_code == 0


@pytest.mark.parametrize("command", ["diff", "replay"])
def test_at_most_so_many_episodes_are_shown_as_asked(run, file, games, command):
    a = file("a", games)
    for game in games:
        game.turns[0].reward = 0.5
    files = [a, file("b", games)] if command == "diff" else [file("b", games)]
    result = run(command, *files, "--limit", "1")
    assert result.exit_code == 1
    assert result.stdout.count("episode 1:") == 1
    assert "episode 2:" not in result.stdout
    assert "... and 2 more episodes; --limit shows more\n" in result.stdout


def test_replay_of_episodes_that_hold(run, file, games):
    result = run("replay", file("a", games))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "3 of 3 episodes are reproduced\n", "")


def test_replay_shows_what_does_not_hold(run, file, games):
    games[1].turns[1].reward = 0.5
    result = run("replay", file("a", games))
    assert result.exit_code == 1
    assert result.stdout == (
        "✗ episode 2: game:GuessTheNumber-v1-easy, train seed 1\n"
        "    turn 2 reward: recorded 0.5, now 0.0\n"
        "1 of 3 episodes are not reproduced\n"
        "(the bare environment of a task is built: wrappers of a make_env are not)\n"
    )


def test_replay_says_which_environment_there_is_not_and_plays_the_others(run, file, games):
    games[0].task = Task("game:Mastermint-v0", 0)
    games[2].turns[0].observation = "x"
    result = run("replay", file("a", games))
    assert result.exit_code == 1
    assert "    there is no environment 'game:Mastermint-v0'. The nearest: game:Mastermind" in result.stdout
    assert "episode 3:" in result.stdout
    assert "2 of 3 episodes are not reproduced\n" in result.stdout


def test_replay_reports_an_environment_that_raises(run, file, registered):
    class Broken(Env):
        def reset(self, seed=None):
            raise RuntimeError("the server is gone")

        def step(self, action):
            return None

    registered("test:Broken-v0", Broken)
    result = run("replay", file("a", [Episode(Task("test:Broken-v0", 0), "Go.")]))
    assert result.exit_code == 1
    assert "    RuntimeError: the server is gone\n" in result.stdout


@pytest.mark.filterwarnings("ignore:backend='plain'")  # which comes once a process
def test_replay_runs_nothing_without_a_sandbox_unless_it_is_told_to(run, file, tmp_path, monkeypatch):
    monkeypatch.setenv("GEM_ALLOW_UNSANDBOXED", "0")  # and it is what it was, after the test
    canary = tmp_path / "canary"
    task = Task("terminal:LogErrors-v0", 0, {"backend": "plain"})
    turn = Turn([1], [2], None, "stop", f"<bash>touch {canary}</bash>")
    path = file("a", [Episode(task, "Go.", [turn])])
    result = run("replay", path)
    assert (result.exit_code, canary.exists()) == (1, False)
    assert "asks for backend='plain', which runs code without a sandbox" in result.stdout
    run("replay", path, "--allow-unsandboxed")
    assert canary.exists()


def test_replay_of_no_episodes_is_an_error(run, file):
    result = run("replay", path := file("a", []))
    assert (result.exit_code, result.stderr) == (2, f"gem: {path} holds no episode\n")


def test_export_writes_valid_trajectories(run, file, games, tmp_path):
    atif = pytest.importorskip("atif")
    out = tmp_path / "out.jsonl"
    result = run("export", file("a", games), "--format", "atif", "--out", str(out))
    assert (result.exit_code, result.stdout) == (0, f"wrote 3 trajectories to {out}\n")
    lines = out.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [to_atif(game) for game in games]
    for line in lines:
        atif.Trajectory.model_validate_json(line)


def test_export_of_what_is_not_valid_writes_nothing(run, file, games, tmp_path):
    pytest.importorskip("atif")
    games[1].turns[0].info = {"score": float("nan")}
    arguments = ["export", file("a", games), "--format", "atif", "--out", str(tmp_path / "out")]
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("gem: episode 2: game:GuessTheNumber-v1-easy, train seed 1: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run(*arguments, "--no-validate").exit_code == 0


def test_export_without_the_package_names_it_and_can_go_without(run, file, games, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "atif", None)
    arguments = ["export", file("a", games), "--format", "atif", "--out", str(tmp_path / "out")]
    result = run(*arguments)
    assert result.exit_code == 1
    assert "pip install atif" in result.stderr
    assert "--no-validate" in result.stderr
    assert run(*arguments, "--no-validate").exit_code == 0
    assert len((tmp_path / "out").read_text().splitlines()) == 3


def test_export_does_not_overwrite_the_episodes(run, file, games):
    path = file("a", games)
    result = run("export", path, "--format", "atif", "--out", path, "--no-validate")
    assert result.exit_code == 2
    assert list(read_jsonl(path)) == games


def test_export_into_a_folder_that_is_not_there_is_an_error(run, file, games, tmp_path):
    result = run("export", file("a", games), "--format", "atif", "--out", str(tmp_path / "no" / "x"), "--no-validate")
    assert result.exit_code == 2
    assert result.stderr.startswith("gem: cannot write ")


EPISODE_COMMANDS = [
    lambda path, good: ["diff", good, path],
    lambda path, good: ["diff", path, good],
    lambda path, good: ["replay", path],
    lambda path, good: ["export", path, "--format", "atif", "--out", f"{good}.out", "--no-validate"],
]


@pytest.mark.parametrize("arguments", EPISODE_COMMANDS)
@pytest.mark.parametrize("line", [b"{}", b"1", b'{"version": 1, "turns": []}', b'{"version": 1, "turns": 5}'])
def test_a_line_that_is_no_episode_is_named(run, file, games, arguments, line):
    good, path = file("a", games), file("b", games[:2])
    with open(path, "ab") as more:
        more.write(line + b"\n")
    result = run(*arguments(path, good))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"gem: {path}, line 3 is no episode: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("line", [b"", b"no", b"\xff", b'{"version": 1, "tu'])
def test_torn_lines_are_told_and_left_out(run, file, games, line):
    good, path = file("a", games), file("b", games[:2])
    with open(path, "ab") as more:
        more.write(line + b"\n" + games[2].to_json().encode() + b"\n" + line[:-1])
    for arguments in EPISODE_COMMANDS:
        result = run(*arguments(path, good))
        assert result.exit_code == 0
        assert result.stderr.startswith(f"gem: {path}: line")
        assert result.stderr.endswith("torn, and left out\n")
        assert "3" in result.stdout  # episodes


def test_a_file_of_something_else_is_no_file_of_episodes(run, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    result = run("replay", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"gem: {path}, line 1 is no episode: it is not JSON in UTF-8\n"


def test_what_a_file_says_is_no_command_for_the_terminal(run, file, games):
    games[0].task = Task("game:\x1b[2J\x07\u202e-v0", 0)
    games[1].turns[0].info = {"\x1b]0;title": 1}
    for command in (["replay", file("a", games)], ["diff", file("a", games), file("b", games[1:])]):
        result = run(*command)
        assert r"\x1b[2J\x07\u202e" in result.stdout
        assert not {"\x1b", "\x07", "\u202e"} & set(result.output)


@pytest.mark.parametrize("arguments", EPISODE_COMMANDS)
def test_a_file_that_is_not_there_is_named(run, file, games, tmp_path, arguments):
    result = run(*arguments(str(tmp_path / "none"), file("a", games)))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"gem: cannot read {tmp_path / 'none'}: No such file or directory\n"
