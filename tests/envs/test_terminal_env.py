"""A terminal: what stays, what a command cannot break, and what does not earn the reward."""

import json
import os
import pickle
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

import gem
from gem.envs import terminal_env, terminal_task
from gem.envs.terminal_env import DONE, TerminalEnv, find_command
from gem.envs.terminal_inside import pack, unpack
from gem.sandbox import Result, SandboxUnavailable, run
from gem.sandbox.pool import Pool
from gem.testing import check_env

AS_BEFORE = "[The working directory and the variables are those from before the command.]"
SHIPPED = ["FixScript", "LogErrors", "RenamePhotos", "RestoreBackup", "SalesReport"]


@pytest.fixture(autouse=True)
def _sandbox():
    try:
        run(["true"], backend="bubblewrap")
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def folder(tmp_path):
    """Return a task of a user: copy the number that the set-up draws."""
    path = tmp_path / "copy"
    (path / "files" / "notes").mkdir(parents=True)
    (path / "files" / "notes" / "hint.txt").write_text("look into number.txt\n")
    (path / "instruction.md").write_text("Copy `number.txt` to `copy.txt`.\n")
    (path / "setup.sh").write_text("echo $((GEM_SEED % 100000)) > number.txt")
    (path / "check.sh").write_text(
        'grep -q look "$GEM_ORIGINAL/notes/hint.txt" && cmp "$GEM_ORIGINAL/number.txt" copy.txt # KEPT-FROM-YOU'
    )
    (path / "solution.sh").write_text("cp ~/number.txt ~/copy.txt")
    return path


@pytest.fixture
def env(folder):
    with TerminalEnv(task=folder, command_timeout=5) as env:
        env.reset(seed=1)
        yield env


def say(env, command):
    """Run a command that ends no episode, and return what is told."""
    observation, reward, terminated, truncated, _ = env.step(f"<bash>{command}</bash>")
    assert (reward, terminated, truncated) == (0.0, False, False)
    return observation


def done(env, command=None):
    """Run a command, end, and return the reward."""
    text = "" if command is None else f"<bash>{command}</bash>"
    observation, reward, terminated, truncated, info = env.step(text + DONE)
    assert (terminated, truncated) == (True, False)
    assert info["success"] == (reward == 1.0)
    assert observation.endswith("The check passed." if reward else "The check failed.")
    return reward


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tasks_are_solved_by_their_solution_and_by_nothing_less(name):
    with gem.make(f"terminal:{name}-v0") as env:
        for seed in range(3):
            env.reset(seed=seed)
            assert done(env) == 0.0
            env.reset(seed=seed)
            assert done(env, "true") == 0.0
            env.reset(seed=seed)
            assert env.step(env.reference_action())[1] == 1.0


@pytest.mark.parametrize("name", SHIPPED)
def test_seeds_make_other_files_and_the_same_seed_the_same(name):
    contents = []
    for seed in (1, 2, 1):
        with gem.make(f"terminal:{name}-v0") as env:
            env.reset(seed=seed)
            contents.append(
                say(env, "find . -type f | sort | xargs -d '\\n' cksum; ls -lR --time-style=+%s | cut -c 30-")
            )
    assert contents[0] == contents[2] != contents[1]


def test_answers_of_another_seed_fail():
    with gem.make("terminal:SalesReport-v0") as env:
        env.reset(seed=1)
        say(env, env.task.solution)
        report = say(env, "cat report.csv")
        env.reset(seed=2)
        assert done(env, f"cat > report.csv << 'END'\n{report}\nEND") == 0.0


def test_inputs_that_were_changed_do_not_change_what_is_right():
    with gem.make("terminal:LogErrors-v0") as env:
        env.reset(seed=1)
        say(env, "for log in logs/*; do echo '2025-03-04T10:15:00 INFO idle' > $log; done")
        assert done(env, "echo '2025-03-04T10:15:00 ERROR one' > logs/mail.log; echo mail 1 > answer.txt") == 0.0


def test_a_script_that_only_knows_the_orders_that_are_there_fails():
    with gem.make("terminal:FixScript-v0") as env:
        env.reset(seed=1)
        env.step(env.reference_action().replace(DONE, ""))
        assert done(env, "bash count.sh > counted.txt; echo 'cat counted.txt' > count.sh") == 0.0


def test_all_plays_each_task_by_seed():
    with gem.make("terminal:All-v0") as env:
        names = [env.reset(seed=seed)[1]["task"] for seed in range(env.size)]
        assert names == [task.folder.name for task in terminal_task.read_tasks(terminal_task._TASKS)]
        assert len(set(names)) == 5
        assert env.reset(seed=env.size + 1)[1]["task"] == names[1]


@pytest.mark.parametrize(
    ("text", "command", "says_done"),
    [
        ("<bash>ls</bash>", "ls", False),
        ("I look:\n```bash\nls -l\npwd\n```\nThen I go on.", "ls -l\npwd", False),
        ("```sh\nls\n```", "ls", False),
        ("```bash\nls\n```\n<done/>", "ls", True),
        ("<bash>ls</bash> <bash>pwd</bash> <done/>", "ls", False),
        ("I will write <done/> at the end. <bash>ls</bash>", "ls", False),
        ("<done/>", None, True),
        ("```python\nls\n```", None, False),
        ("```bash\n```", None, False),
        ("<bash>ls", None, False),
    ],
)
def test_the_first_command_of_a_text(text, command, says_done):
    assert find_command(text) == (command, says_done)


def test_the_instruction_says_what_holds(folder):
    with TerminalEnv(task=folder, max_turns=7, command_timeout=1.5) as env:
        observation, info = env.reset(seed=0)
    assert observation.startswith("Copy `number.txt` to `copy.txt`.\n\n")
    assert "7 turns" in observation
    assert "1.5 seconds" in observation
    assert DONE in observation
    assert info == {"task": "copy"}


def test_folder_variables_and_files_stay(env):
    assert say(env, "cat notes/hint.txt") == "look into number.txt"
    assert (
        say(env, "cd notes; export A='two\nlines'; echo 1 > file; f() { echo F; }; export -f f; exit 3")
        == "[exit code 3]"
    )
    assert say(env, 'echo "$A" ${PWD##*/} $(cat file) $(f) $?') == "two\nlines notes 1 F 0"
    assert say(env, "rm -r ../notes") == "[no output]"
    assert say(env, "pwd") == "/tmp/work\n[The working directory was gone: ~ is in its place.]"


def test_output_of_both_kinds_in_order_and_its_middle_left_out(folder):
    with TerminalEnv(task=folder, max_chars=20) as env:
        env.reset(seed=0)
        assert say(env, "echo a; echo b >&2; echo c") == "a\nb\nc"
        assert say(env, "printf '\\0\\377'") == "\0\ufffd"
        assert say(env, "seq 1000; exit 4").endswith("\n[exit code 4]")
        assert "characters left out" in say(env, "seq 1000")


def test_a_command_that_hangs_costs_its_turn_and_nothing_else(folder):
    with TerminalEnv(task=folder, command_timeout=1) as env:
        env.reset(seed=1)
        say(env, "cd notes; export A=1; echo kept > file")
        begin = time.monotonic()
        killed = f"[The command was killed: it took longer than 1 seconds.]\n{AS_BEFORE}"
        assert say(env, "echo before; sleep 60 & sleep 60") == f"before\n{killed}"
        assert time.monotonic() - begin < 3
        assert say(env, "cat file; echo $A; pgrep -c sleep") == "kept\n1\n0\n[exit code 1]"
        assert say(env, "cat") == "[no output]"  # there is no input to wait for
        assert done(env, "cp ~/number.txt ~/copy.txt") == 1.0


def test_a_flood_costs_its_turn_and_nothing_else(folder):
    with TerminalEnv(task=folder, command_timeout=1) as env:
        env.reset(seed=1)
        flood = say(env, "yes")
        assert "is lost]" in flood
        assert len(flood) < 5_000
        say(env, "yes & sleep 0.1")
        begin = time.monotonic()
        say(env, "pkill yes")
        assert time.monotonic() - begin < 3
        assert say(env, "echo quiet") == "quiet"


def test_processes_in_the_background_go_on_until_the_end(env):
    say(env, "(while sleep 0.05; do echo x >> beat; done) > /dev/null 2>&1 &")
    before = int(say(env, "sleep 0.5; wc -l < beat"))
    assert int(say(env, "sleep 0.5; wc -l < beat")) > before > 0


def test_a_fork_bomb_costs_its_turn_and_nothing_else(folder):
    with TerminalEnv(task=folder, command_timeout=2, processes=40) as env:
        env.reset(seed=1)
        say(env, "echo kept > file; for i in 1 2 3 4 5 6; do (for j in 1 2 3 4 5 6 7; do sleep 60 & done; wait) & done")
        assert "kept" in say(env, "cat file")
        say(env, "f() { f | f & }; f")
        time.sleep(0.5)
        assert "Too many processes" in say(env, "true")
        assert say(env, "cat file; pgrep -c sleep") == "kept\n0\n[exit code 1]"
        assert done(env, "cp ~/number.txt ~/copy.txt") == 1.0


def test_files_and_memory_that_run_out_cost_their_turn(folder):
    with TerminalEnv(task=folder, file_bytes=4 << 20, memory_bytes=512 << 20) as env:
        env.reset(seed=1)
        assert "memory" in say(env, "tail /dev/zero")
        assert "[exit code" in say(env, "head -c 100000000 /dev/zero > big")
        assert say(env, "rm big; cat notes/hint.txt") == "look into number.txt"
        say(env, "for i in $(seq 20); do truncate -s 4M sparse-$i; done")
        assert done(env, "cp ~/number.txt ~/copy.txt") == 0.0  # 80 MB, by their sizes


@pytest.mark.parametrize("command", ["kill -9 $PPID", "kill -9 -1"])
def test_a_command_that_ends_the_sandbox_ends_the_episode_and_says_so(env, command):
    say(env, "cp number.txt copy.txt")
    observation, reward, terminated, truncated, info = env.step(f"<bash>{command}</bash>{DONE}")
    assert "its files are lost" in observation
    assert (reward, terminated, truncated, info["reason"]) == (0.0, False, True, "sandbox")
    with pytest.raises(gem.ResetNeeded):
        env.step(DONE)
    env.reset(seed=1)
    assert say(env, "ls") == "notes\nnumber.txt"


@pytest.mark.parametrize("answer", ["", "[" * 90_000, "[]", '{"exit_code": 0}', "Traceback"])
def test_an_answer_that_a_command_has_spoilt_ends_the_episode(env, monkeypatch, answer):
    say(env, "true")
    spoilt = Result(0, "", answer, timed_out=False, truncated=False, seconds=0.0)
    monkeypatch.setattr(env._session, "run", lambda *arguments: spoilt)
    _, reward, terminated, truncated, info = env.step("<bash>true</bash>")
    assert (reward, terminated, truncated, info["reason"]) == (0.0, False, True, "sandbox")


def test_the_last_turn_checks_too_and_truncates(folder):
    with TerminalEnv(task=folder, max_turns=2) as env:
        for command, expected in (("true", 0.0), ("cp number.txt copy.txt", 1.0)):
            env.reset(seed=0)
            say(env, "pwd")
            observation, reward, terminated, truncated, info = env.step(f"<bash>{command}</bash>")
            assert (reward, terminated, truncated, info["success"]) == (expected, False, True, expected == 1.0)
            assert "That was the last turn.\nThe check" in observation


def test_the_time_of_all_commands_is_limited(folder):
    with TerminalEnv(task=folder, command_timeout=30, episode_timeout=3) as env:
        env.reset(seed=0)
        say(env, "cp number.txt copy.txt; sleep 0.4")
        observation, reward, terminated, truncated, _ = env.step("<bash>sleep 30</bash>")
        assert (reward, terminated, truncated) == (1.0, False, True)
        assert "it took longer than 2." in observation
        assert "The time is up." in observation


@pytest.mark.parametrize("text", ["", "ls", "\ud800", "```bash\n```", "<bash>\ud800 \0 echo</bash>", "<bash>if</bash>"])
def test_any_text_is_answered(env, text):
    observation, reward, terminated, truncated, _ = env.step(text)
    assert observation
    assert (reward, terminated, truncated) == (0.0, False, False)


def test_a_command_that_is_too_long_is_not_run(env):
    assert "longer than" in say(env, "echo " + "a" * 200_000)
    assert say(env, "export A=" + "a" * 90_000) == "[no output]"
    assert say(env, "cd notes; export B=$A$A").endswith(AS_BEFORE)  # no program takes such a variable
    assert say(env, "echo ${#A} ${#B} $PWD") == "90000 0 /tmp/work"


@pytest.mark.parametrize("command", ["exec ls", "trap 'ls' EXIT"])
def test_a_shell_that_does_not_end_as_usual_is_told(env, command):
    assert say(env, f"A=1; export A; {command}") == f"notes\nnumber.txt\n{AS_BEFORE}"
    assert say(env, "echo [$A]") == "[]"


CHEATS = {
    "programs of one's own": """
        mkdir -p bin
        printf '#!/bin/sh\\nexit 0\\n' > bin/grep
        chmod +x bin/grep
        for name in cmp bash sh env test ls cat; do cp bin/grep bin/$name; done
        cp -r bin /tmp/bin; cp bin/* .; export PATH=$HOME/bin:/tmp/bin:.:$PATH
    """,
    "functions": "grep() { return 0; }; cmp() { return 0; }; export -f grep cmp",
    "start-up files": """
        echo 'exit 0' | tee .bashrc .profile .bash_profile .bash_logout /tmp/rc /tmp/home/.bashrc
        export BASH_ENV=$HOME/.bashrc ENV=/tmp/rc LD_PRELOAD=/tmp/rc PROMPT_COMMAND='exit 0'
    """,
    "aliases": "shopt -s expand_aliases; alias grep=true cmp=true",
    "a result elsewhere": "mkdir -p /tmp/original; echo 1 | tee /tmp/original/number.txt copy.txt",
    "a link to what is compared": "ln -s /tmp/original/number.txt copy.txt",
    "a link to an open file": "ln -s /proc/self/fd/3 copy.txt",
    "a link by way of another": "mkdir /tmp/x; ln -s /proc/self/fd/3 /tmp/x/y; ln -s /tmp/x x; ln -s x/y copy.txt",
    "a link to the folder of the check": "ln -s /tmp/original orig; ln -s orig/number.txt copy.txt",
    "a pipe": "mkfifo copy.txt; (while true; do cat number.txt > copy.txt; done) > /dev/null 2>&1 &",
    "a folder": "mkdir copy.txt",
    "a process that waits for the check": "(while sleep 0.01; do pkill -9 cmp; done) > /dev/null 2>&1 &",
    "Python modules": "printf 'import os; os._exit(0)' | tee json.py zlib.py base64.py subprocess.py sitecustomize.py "
    "| tee /tmp/home/json.py > /tmp/home/zlib.py",
    "modules for the shell's own process": "cd /tmp/home; echo 'raise SystemExit(0)' > base64.py; cp base64.py stat.py",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pay(env, name):
    step = env.step(f"<bash>{CHEATS[name]}</bash>")
    assert step[1] == 0.0
    assert done(env) == 0.0


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_spoil_an_honest_solution(env, name):
    env.step(f"<bash>{CHEATS[name]}</bash>")
    assert done(env, "unset LD_PRELOAD; cd ~; /bin/rm -rf copy.txt; /bin/cp number.txt copy.txt") == 1.0


FORGERY = """
import base64, json, sys, time, zlib
entries = [["{file}", 0o100644, 1, base64.b64encode(b"x").decode()], ["up", 0o120777, 1, ".."],
    ["up/expected", 0o120777, 1, "work/{file}"]]
packed = ""
while not packed.endswith("="):  # where the text ends, for what reads it
    entries[0][2] += 1
    packed = base64.b64encode(zlib.compress(json.dumps(entries).encode())).decode()
for _ in range(50):
    time.sleep(0.05)
    sys.stdout.write(packed)
    sys.stdout.flush()
"""


@pytest.mark.parametrize(("name", "file"), [("SalesReport", "report.csv"), ("LogErrors", "errors.txt")])
def test_no_process_can_hand_over_a_folder_of_its_own(name, file):
    with gem.make(f"terminal:{name}-v0") as env:
        env.reset(seed=0)
        code = FORGERY.format(file=file)
        say(env, f"cat > /tmp/forge.py << 'END'\n{code}\nEND\n(setsid {sys.executable} /tmp/forge.py &)\nsleep 0.5")
        assert done(env) == 0.0


def test_nothing_runs_any_more_when_the_folder_is_handed_over(env):
    bomb = "f() { sleep 0.05; f & f; }; f"
    say(env, f"(setsid bash -c '{bomb}' > /dev/null 2>&1 &) ; setsid sleep 60 > /dev/null 2>&1 & sleep 0.3")
    count = "print(sum(map(str.isdecimal, os.listdir('/proc'))))"
    assert int(env._session.run(count).stdout) > 3
    assert env._session.run(f"end_others(); {count}").stdout == "2\n"  # the first process, and the one that counts


OPENING = """
import ctypes, os
libc, opened = ctypes.CDLL(None), []
for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())[1:2]:  # after it come the model's
    for name in ("mem", "fd/1", "fd/2", "environ", "maps", "cwd/x"):
        try:
            opened.append((name, os.open(f"/proc/{pid}/{name}", os.O_RDWR if name == "mem" else os.O_RDONLY)))
        except OSError as error:
            if error.errno == 2 and name == "cwd/x":
                opened.append(name)
    handle = os.pidfd_open(pid)
    opened += [f"handle {n}" for n in range(8) if libc.syscall(438, handle, n, 0) >= 0]
    opened += ["traced"] * (libc.ptrace(0x4206, pid, 0, 0) == 0)
print(opened, len([name for name in os.listdir("/proc") if name.isdecimal()]) > 3)
"""


def test_the_process_that_runs_the_commands_is_closed_to_them(env):
    assert say(env, f"{sys.executable} - << 'END'\n{OPENING}\nEND") == "[] True"


def test_the_process_that_hands_over_what_a_trial_left_is_closed_to_it(folder):
    (folder / "trial.sh").write_text("bash program.sh > out")
    (folder / "check.sh").write_text("cat out >&2; [ $(wc -l < out) = 1 ]")
    with TerminalEnv(task=folder) as env:
        env.reset(seed=0)
        loop = "for _ in $(seq 500); do sleep 0.01; rm -rf ~/work/out /tmp/home/work/out; done"
        background = f"(setsid bash -c '{loop}' > /dev/null 2>&1 &)"
        say(env, f"cat > program.sh << 'END'\n{background}\n{sys.executable} - << 'CODE'\n{OPENING}\nCODE\nEND")
        *_, info = env.step(DONE)
        assert info["check"].strip() == "[] True"


def test_the_check_is_nowhere_to_be_read(env):
    assert say(env, "grep -rls --exclude-dir=site-packages KEPT-FROM-YO[U] /tmp /etc /gem") == "[exit code 1]"
    assert say(env, "cat /proc/[0-9]*/{environ,cmdline} 2> /dev/null | grep -c KEPT-FROM-YO[U]") == "0\n[exit code 1]"
    assert say(env, "env | grep GEM_") == "[exit code 1]"
    assert say(env, f"ls {env.task.folder}").endswith("[exit code 2]")


def test_a_task_that_the_sandbox_shows_is_told(folder):
    terminal_env._warn_if_visible.cache_clear()
    with tempfile.TemporaryDirectory(dir=sys.prefix) as shown:
        os.chmod(shown, 0o755)
        visible = shutil.copytree(folder, Path(shown, "task"))
        with TerminalEnv(task=visible) as env, pytest.warns(UserWarning, match="the model can read"):
            env.reset(seed=0)


def test_state_goes_on_elsewhere(env, folder):
    say(env, "cd notes; export A=1; echo kept > file")
    state = json.loads(json.dumps(env.get_state()))
    copies = [TerminalEnv(task=folder), pickle.loads(pickle.dumps(env)), env.spawn(same_state=True)]
    copies[0].set_state(state)
    for other in copies:
        with other:
            assert say(other, "echo $A; cat file ~/number.txt") == say(env, "echo $A; cat file ~/number.txt")
    with TerminalEnv(task=folder) as other:
        say(env, "cp ~/number.txt ~/copy.txt")
        other.set_state(env.get_state())
        assert done(other) == 1.0
        assert done(env) == 1.0
        other.set_state(env.get_state())
        with pytest.raises(gem.ResetNeeded):
            other.step(DONE)


def test_a_sandbox_that_is_closed_is_made_again(env):
    say(env, "echo 1 > file")
    env.close()
    env.close()
    assert say(env, "cat file") == "1"


def test_nothing_is_left_after_close(folder):
    env = TerminalEnv(task=folder)
    env.reset(seed=0)
    mark = f"86{os.getpid()}"  # seconds: no other process sleeps as long
    say(env, f"setsid sleep {mark} > /dev/null 2>&1 & sleep 0.1; echo left > /tmp/{mark}")
    assert _comes(mark)
    env.close()
    end = time.monotonic() + 5
    while _processes(mark) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _processes(mark)
    assert not os.path.exists(f"/tmp/{mark}")
    env.reset(seed=0)
    assert say(env, f"ls /tmp/{mark}").endswith("[exit code 2]")
    env.close()


def _comes(word):
    end = time.monotonic() + 5
    while not _processes(word) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(_processes(word))


def _processes(word):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_text(errors="replace").split("\0"):
                found.append(path)
        except OSError:
            continue
    return found


def test_a_task_of_a_user_keeps_the_contract(folder):
    check_env(lambda: TerminalEnv(task=folder), seeds=range(2))


def test_a_folder_of_tasks_of_a_user(folder):
    shutil.copytree(folder, folder.parent / "another")
    with TerminalEnv(tasks=folder.parent) as env:
        assert [env.reset(seed=seed)[1]["task"] for seed in range(3)] == ["another", "copy", "another"]
        assert env.step(env.reference_action())[1] == 1.0


def test_a_trial_runs_apart_from_the_check(folder):
    (folder / "instruction.md").write_text("Write `double.sh`, which doubles the number in `n`.")
    (folder / "trial.sh").write_text("echo 21 > n; timeout 1 bash double.sh > out; exit 1")
    (folder / "check.sh").write_text('[ "$(cat out)" = 42 ]')
    with TerminalEnv(task=folder) as env:
        for program, expected in {
            "echo $(($(cat n) * 2))": 1.0,
            "echo $(($(cat n) * 3))": 0.0,
            "kill -9 -1": 0.0,
            "kill -9 $PPID; echo 42 > out; echo 42": 1.0,  # timeout ends, and what it ran is right
            "sleep 60": 0.0,
        }.items():
            env.reset(seed=0)
            assert done(env, f"cat > double.sh << 'END'\n{program}\nEND") == expected, program


def test_folders_that_are_no_tasks_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        TerminalEnv(task=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*no-such-task"):
        TerminalEnv(task="sample:no-such-task")
    with pytest.raises(ValueError, match="holds no tasks"):
        TerminalEnv(tasks=folder / "files" / "notes")
    (folder / "setup.sh").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"setup\.sh is not text"):
        TerminalEnv(task=folder)
    (folder / "check.sh").write_text("\n")
    with pytest.raises(ValueError, match=r"copy is no task: check\.sh is empty"):
        TerminalEnv(task=folder)
    (folder / "instruction.md").unlink()
    with pytest.raises(ValueError, match=r"copy is no task: instruction\.md is missing"):
        TerminalEnv(tasks=tmp_path)
    for arguments in ({}, {"task": folder, "tasks": tmp_path}):
        with pytest.raises(ValueError, match="name a task's folder"):
            TerminalEnv(**arguments)
    with pytest.raises(ValueError, match="max_turns"):
        TerminalEnv(task=folder, max_turns=0)
    with pytest.raises(ValueError, match="bubblewrap or plain, got 'landlock'"):
        TerminalEnv(task=folder, backend="landlock")


def test_a_set_up_that_fails_is_told_by_reset(folder):
    (folder / "setup.sh").write_text("echo cannot >&2; exit 3")
    with TerminalEnv(task=folder) as env, pytest.raises(RuntimeError, match="failed with exit code 3: cannot"):
        env.reset(seed=0)


def test_a_task_without_a_solution_has_no_reference(folder):
    (folder / "solution.sh").unlink()
    (folder / "setup.sh").unlink()
    with TerminalEnv(task=folder) as env:
        env.reset(seed=0)
        with pytest.raises(NotImplementedError, match=r"no solution\.sh"):
            env.reference_action()
        assert say(env, "ls") == "notes"


def test_without_a_sandbox_nothing_runs(folder, monkeypatch):
    def unavailable():
        raise SandboxUnavailable("bubblewrap is not installed; see docs/sandbox.md")

    monkeypatch.setattr("gem.sandbox.pool._pool", lambda backend: Pool(unavailable))
    terminal_env._warn_if_visible.cache_clear()
    with (
        TerminalEnv(task=folder) as env,
        pytest.raises(SandboxUnavailable, match=r"docs/sandbox\.md.* with backend='plain'"),
    ):
        env.reset(seed=0)


@pytest.mark.filterwarnings("ignore:backend='plain'")
def test_plain_runs_here_and_leaves_no_process(folder):
    mark = f"87{os.getpid()}"
    with TerminalEnv(task=folder, backend="plain") as env:
        env.reset(seed=1)
        home = say(env, f"sleep {mark} > /dev/null 2>&1 & cd notes; echo ~")
        assert os.path.isdir(home)
        assert _comes(mark)
        assert done(env, "cp ~/number.txt ~/copy.txt") == 1.0
    assert not _processes(mark)
    assert not os.path.exists(home)


def test_what_is_packed_is_unpacked(tmp_path):
    source = tmp_path / "source"
    (source / "empty").mkdir(parents=True)
    (source / "a b\n").write_bytes(b"\0\xff")
    (source / "a b\n").chmod(0o741)
    os.utime(source / "a b\n", (5, 5))
    os.symlink("a b\n", source / "link")
    os.symlink("/etc", source / "out")
    os.mkfifo(source / "pipe")
    unpack(pack(str(source), 10), str(tmp_path / "target"))
    assert sorted(os.listdir(tmp_path / "target")) == ["a b\n", "empty", "link"]
    copy = tmp_path / "target" / "link"
    assert copy.read_bytes() == b"\0\xff"
    assert (copy.stat().st_mode & 0o777, copy.stat().st_mtime) == (0o741, 5)
    with pytest.raises(ValueError, match="more than 1 bytes"):
        pack(str(source), 1)


@pytest.mark.parametrize("name", ["/tmp/out", "../out", "a/../../out", "..", "link/out", ".", "", "up/out"])
def test_nothing_is_unpacked_outside(tmp_path, name):
    import base64
    import zlib

    entries = [["link", 0o120777, 0, str(tmp_path)], [name, 0o100644, 0, ""]]
    packed = base64.b64encode(zlib.compress(json.dumps(entries).encode())).decode()
    with pytest.raises((ValueError, OSError)):
        unpack(packed, str(tmp_path / "target"))
    assert not (tmp_path / "out").exists()
