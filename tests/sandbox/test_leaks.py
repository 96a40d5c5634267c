"""Nothing is left of a run: no process, no handle, no file."""

import gc
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from processes import descendants, handles, resident, runs

from gem.sandbox import Limits, Session, run
from gem.sandbox import pool as pools

pytestmark = pytest.mark.usefixtures("sandbox")

PROGRAMS = (
    "while True: pass",
    "import os, time\nfor _ in range(5):\n    os.fork()\ntime.sleep(99)",
    "import os\nif os.fork() == 0:\n    os.setsid()\n    os.execvp('sleep', ['sleep', '99'])",
    "import os\nwhile True: os.write(1, bytes(1 << 16))",
    "import os; os.abort()",
    "open('file', 'wb').write(bytes(1 << 20)); 1 / 0",
)


def state():
    # The folders of programs that wait for their code are empty.
    left = [str(path) for path in Path(tempfile.gettempdir()).iterdir() if any(path.iterdir())]
    return len(descendants()), handles(), left


@pytest.fixture
def own_folders(sandbox, tmp_path, monkeypatch):
    """Have new sandboxes, whose folders are where nobody else has any."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pools._pool.cache_clear()
    yield
    pools._pool(sandbox).close()
    pools._pool.cache_clear()


def test_200_bad_programs_leave_nothing(own_folders):
    with Session() as session:  # so that there are two sandboxes
        session.run("")
        run("")
        time.sleep(0.2)  # until they have the next programs ready
    gc.collect()
    before, held = state(), resident()
    for at in range(200):
        program = PROGRAMS[at % len(PROGRAMS)]
        limits = Limits(wall_seconds=0.03, memory_bytes=1 << 28)
        if at % 10 == 0:
            with Session(limits) as session:
                session.run(program)
        else:
            run(program, limits=limits)
    gc.collect()
    deadline = time.monotonic() + 2  # the sandboxes may still get the next program ready
    while state() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state() == before
    assert resident() - held < 20 << 20


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_sandboxes_end_with_their_process_however_it_ends(end, sandbox):
    program = (
        "import functools, threading, time\nfrom gem.sandbox import run\n"
        f"run = functools.partial(run, backend={sandbox!r})\nrun('')\n"
        "threading.Thread(target=run, args=('import time; time.sleep(99)',), daemon=True).start()\n"
        "time.sleep(0.3)\nprint('ready', flush=True)\ntime.sleep(99)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        process.stdout.readline()
        children = descendants(process.pid)
        process.send_signal(end)
    assert len(children) >= 3
    deadline = time.monotonic() + 5
    while (left := [child for child in children if runs(child)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
