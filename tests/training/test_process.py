import os
import signal
import subprocess
import sys
import time

import pytest
from processes import take_interrupts

from gem.training.process import TrainerFailed, read_rows, require_trainer, run_trainer
from gem.training.process_tree import ProcessTree


def python(code):
    return [sys.executable, "-c", code]


def test_output_command_and_variables(tmp_path):
    looks = []
    code = "import os, time; print('hello', os.environ['WHO']); time.sleep(0.2)"
    run_trainer(python(code), {"WHO": "you & me"}, tmp_path / "log", lambda: looks.append(1), interval=0.05)
    assert (tmp_path / "log").read_text() == "hello you & me\n"
    assert len(looks) > 2
    again = subprocess.run(["bash", str(tmp_path / "command.sh")], capture_output=True, text=True, check=True)
    assert again.stdout == "hello you & me\n"


def test_a_failure_shows_the_end_of_the_output(tmp_path):
    code = "import sys; [print('line', i) for i in range(100)]; sys.exit('the reason')"
    with pytest.raises(TrainerFailed, match=r"(?s)line 99.*the reason.*is in .*log") as failure:
        run_trainer(python(code), {}, tmp_path / "log", lambda: None, interval=0.02)
    assert "line 20" not in str(failure.value)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # one that has ended, and waits for its parent to notice, is not alive
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


CHILD = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"


def test_nothing_that_the_trainer_started_outlives_it(tmp_path):
    run_trainer(python(CHILD), {}, tmp_path / "log", lambda: None, interval=0.02)
    pid = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_an_interrupt_ends_the_trainer(tmp_path):
    def interrupt():
        if (tmp_path / "log").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trainer(python(CHILD + "; import time; time.sleep(60)"), {}, tmp_path / "log", interrupt, interval=0.02)
    pid = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_rows_of_a_file_that_is_being_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]


def test_an_example_with_the_python_of_another_trainer_says_which_to_take(monkeypatch):
    monkeypatch.setattr("gem.training.process.find_spec", {"trl": object(), "RL2": object()}.get)
    monkeypatch.setattr(sys, "argv", ["examples/train_verl.py", "--steps", "3"])
    require_trainer("trl")
    require_trainer("rl2")
    with pytest.raises(SystemExit) as ended:
        require_trainer("verl")
    assert str(ended.value) == (
        f"error: {sys.executable} has trl, rl2, and not verl. In this folder: python ci/venv.py verl, then "
        ".venvs/verl/bin/python examples/train_verl.py"
    )


# A command whose children and grandchildren are in sessions of their own, and some of them deaf to SIGTERM
FAMILY = """
import os, signal, subprocess, sys, time
reaction = "SIG_IGN" if "deaf" in sys.argv else "SIG_DFL"
deaf = f"import signal, time; signal.signal(signal.SIGTERM, signal.{reaction}); print(flush=True); time.sleep(60)"
other = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
other.stdout.readline()
daemon = subprocess.Popen(["setsid", "sh", "-c", "sleep 60 & echo $!"], stdout=subprocess.PIPE)
print(os.getpid(), other.pid, int(daemon.stdout.readline()), flush=True)
time.sleep(float(sys.argv[1]))
"""

STARTER = """
import sys
from pathlib import Path
from gem.training.process_tree import ProcessTree
from gem.training.process import run_trainer
try:
    run_trainer([sys.executable, "-c", sys.argv[1], "60", *sys.argv[3:]], {}, Path(sys.argv[2]), lambda: None)
finally:
    Path(sys.argv[2]).with_name("cleaned").touch()
"""


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_starter_ends_all_that_the_trainer_has_started(tmp_path, sign, importable):
    log = tmp_path / "log"
    deaf = ["deaf"] if sign == signal.SIGKILL else []
    words = [sys.executable, "-c", STARTER, FAMILY, str(log), *deaf]
    starter = subprocess.Popen(words, stderr=subprocess.DEVNULL, preexec_fn=take_interrupts)
    wait_for(lambda: log.is_file() and log.read_text().endswith("\n"))
    family = [int(pid) for pid in log.read_text().split()]
    assert len(family) == 3
    assert all(map(alive, family))
    starter.send_signal(sign)
    code = starter.wait(30)
    wait_for(lambda: not any(map(alive, family)))
    cleaned = (tmp_path / "cleaned").exists()
    assert (code, cleaned) == {
        signal.SIGTERM: (143, True),
        signal.SIGHUP: (129, True),
        signal.SIGINT: (-signal.SIGINT, True),
        signal.SIGKILL: (-signal.SIGKILL, False),
    }[sign]


def test_what_a_trainer_leaves_running_is_ended_with_it(tmp_path):
    log = tmp_path / "log"
    run_trainer([sys.executable, "-c", FAMILY, "0", "deaf"], {}, log, lambda: None, interval=0.05)
    assert not any(map(alive, map(int, log.read_text().split())))


def test_a_trainer_that_a_signal_ends_has_failed(tmp_path):
    with pytest.raises(TrainerFailed):
        run_trainer(["sh", "-c", "kill -9 $$"], {}, tmp_path / "log", lambda: None, interval=0.05)
    with ProcessTree(["sh", "-c", "kill -9 $$"]) as tree:
        assert tree.wait(20) == 137
