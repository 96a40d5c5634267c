"""An example that is ended by a signal leaves nothing running, whatever its trainer has started."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
from processes import take_interrupts

from gem.training.process import PACKAGES

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
INSTALLED = [trainer for trainer, package in PACKAGES.items() if importlib.util.find_spec(package) is not None]
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]
START_SECONDS, END_SECONDS = 400, 90


def marked(mark):
    """Return the processes that have a variable in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("GEM_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("trains", [False, True], ids=["as it starts", "as it trains"])
@pytest.mark.parametrize("trainer", INSTALLED)
def test_nothing_is_left_running(trainer, trains, number, tmp_path):
    mark = uuid.uuid4().hex
    words = [sys.executable, str(EXAMPLES / f"train_{trainer}.py"), "--steps", "500", "--out", str(tmp_path / "out")]
    variables, silent = {**os.environ, "GEM_TEST_MARK": mark}, subprocess.DEVNULL
    with subprocess.Popen(words, env=variables, stdout=silent, stderr=silent, preexec_fn=take_interrupts) as example:
        sign = tmp_path / "out" / ("metrics.jsonl" if trains or trainer == "trl" else f"{trainer}.log")
        end = time.monotonic() + START_SECONDS
        while not (sign.exists() and sign.stat().st_size):
            assert example.poll() is None
            assert time.monotonic() < end
            time.sleep(0.5)
        if not trains:
            time.sleep(5)
        most = len(marked(mark))
        assert most > (0 if trainer == "trl" else 2)  # the example, its supervisor, and what that has started
        example.send_signal(number)
        example.wait(END_SECONDS)
        end = time.monotonic() + END_SECONDS
        while (left := marked(mark)) and time.monotonic() < end:
            time.sleep(0.2)
    names = [process.name() for process in left]
    for process in left:
        process.kill()
    assert not names
    print(f"{trainer}: {most} processes, ended within {END_SECONDS - (end - time.monotonic()):.1f} s")
