import os
import subprocess
import sys
import time

import pytest

from gem.training_process import TrainerFailed, read_rows, require_trainer, run_trainer


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
    monkeypatch.setattr("gem.training_process.find_spec", {"trl": object(), "RL2": object()}.get)
    monkeypatch.setattr(sys, "argv", ["examples/train_verl.py", "--steps", "3"])
    require_trainer("trl")
    require_trainer("rl2")
    with pytest.raises(SystemExit) as ended:
        require_trainer("verl")
    assert str(ended.value) == (
        f"error: {sys.executable} has trl, rl2, and not verl. In this folder: python ci/venv.py verl, then "
        ".venvs/verl/bin/python examples/train_verl.py"
    )
