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
from gem.sandbox.escapes import ATTEMPTS
from gem.sandbox.targets import escaped, set_up_targets

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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_2000_attempts_to_get_out_leave_nothing(own_folders, sandbox):
    def mounts():
        return Path("/proc/self/mounts").read_text()

    with set_up_targets(sandbox) as facts:
        for attempt in ATTEMPTS[:10]:
            escaped(attempt, facts, sandbox)
        gc.collect()
        before, held, mounted = state(), resident(), mounts()
        for at in range(2000):
            escaped(ATTEMPTS[at % len(ATTEMPTS)], facts, sandbox)
        gc.collect()
        deadline = time.monotonic() + 2
        while state() != before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state() == before
        assert mounts() == mounted
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


READ_ITS_MEMORY = """
secret = bytes(byte ^ 1 for byte in bytes.fromhex("{mask}"))  # which is there once so
found = 0
for line in open("/proc/self/maps"):
    span, mode, *_ = line.split()
    if "r" in mode and "[v" not in line:
        begin, end = (int(at, 16) for at in span.split("-"))
        with open("/proc/self/mem", "rb", 0) as memory:
            memory.seek(begin)
            found += memory.read(end - begin).count(secret)
print(found)
"""


def test_nothing_of_earlier_runs_is_in_the_memory_of_a_program(sandbox):
    if sandbox == "landlock":
        pytest.skip("a program cannot read /proc/self/maps there; the process that it is forked from is the same")
    secret = "what-an-earlier-run-was-given"
    read = READ_ITS_MEMORY.format(mask=bytes(byte ^ 1 for byte in secret.encode()).hex())
    assert int(run(f"secret_of_its_own = {secret!r}\n{read}").stdout) > 1
    for _ in range(5):
        assert run(f"{secret!r}\nprint(input())", secret).stdout == f"{secret}\n"
        assert run(["echo", secret]).stdout == f"{secret}\n"
        with Session() as session:
            assert session.run(f"print({secret!r})").stdout == f"{secret}\n"
    assert [int(run(read).stdout) for _ in range(4)] == [1, 1, 1, 1]
    with Session() as session:
        assert int(session.run(read).stdout) == 1
