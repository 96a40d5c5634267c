"""Running a program once: what it gets, what comes back, and its limits."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gem.sandbox import Limits, SandboxUnavailable, describe, run
from gem.sandbox import pool as pools
from gem.sandbox.starting import Sandbox

pytestmark = pytest.mark.usefixtures("sandbox")


def test_program_reads_its_input_and_writes_output():
    result = run("import sys\nprint(input()[::-1])\nprint('note', file=sys.stderr)", stdin="abç")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "çba\n", "note\n")
    assert not result.timed_out
    assert not result.truncated


def test_large_input_arrives_whole():
    assert run("import sys; print(len(sys.stdin.read()))", stdin="x" * (3 << 20)).stdout == f"{3 << 20}\n"


@pytest.mark.parametrize(
    ("program", "exit_code"),
    [
        ("", 0),
        ("import sys; sys.exit(3)", 3),
        ("raise SystemExit('reason')", 1),
        ("1 / 0", 1),
        ("this is no Python", 1),
        ("import os; os._exit(7)", 7),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        (["sh", "-c", "exit 4"], 4),
        (["no-such-program"], 127),
    ],
)
def test_exit_code_is_that_of_the_program(program, exit_code):
    assert run(program).exit_code == exit_code


def test_error_shows_the_line_of_the_program_and_nothing_of_the_sandbox():
    stderr = run("def f():\n    return [][0]\nf()").stderr
    assert "line 2, in f\n    return [][0]" in stderr
    assert stderr.endswith("IndexError: list index out of range\n")
    assert "zygote" not in stderr


def test_program_is_like_a_script():
    program = (
        "import os, sys, threading, atexit\natexit.register(print, 'end')\nprint(__name__, sys.argv, os.listdir('.'))"
    )
    program += "\nthreading.Thread(target=lambda: print('thread')).start()"
    assert run(program).stdout == "__main__ ['main.py'] ['main.py']\nthread\nend\n"


def test_packages_of_this_python_can_be_imported():
    assert run("import numpy; print(numpy.arange(3).sum())").stdout == "3\n"


def test_programs_use_processes_and_loopback(sandbox):
    if sandbox == "landlock":
        pytest.skip("there are no sockets, and no place for locks that processes share")
    program = (
        "import multiprocessing, socket, subprocess\n"
        "with multiprocessing.Pool(2) as pool:\n    print(pool.map(abs, [-1, 2]))\n"
        "print(subprocess.run(['echo', 'hello'], stdout=-1, stderr=subprocess.DEVNULL, text=True).stdout)\n"
        "with socket.create_server(('127.0.0.1', 0)) as server, socket.create_connection(server.getsockname()):\n"
        "    print('connected')"
    )
    assert run(program).stdout == "[1, 2]\nhello\n\nconnected\n"


@pytest.mark.parametrize(
    "program",
    ["while True: pass", "import time; time.sleep(99)", "import time\nwhile True: print('x', time.sleep(1e-3))"],
)
def test_time_is_up_in_time(program):
    started = time.monotonic()
    result = run(program, limits=Limits(wall_seconds=1.0))
    assert 1.0 <= time.monotonic() - started < 1.3
    assert result.timed_out
    assert result.exit_code is None


def test_output_before_the_time_was_up_is_kept():
    result = run("print('before', flush=True)\nwhile True: pass", limits=Limits(wall_seconds=0.2))
    assert result.stdout == "before\n"


@pytest.mark.parametrize("program", ["print('x' * 3_000_000); print('end')", "while True: print('x')"])
def test_program_that_writes_more_than_the_limit_is_killed(program):
    result = run(program, limits=Limits(output_bytes=1000, wall_seconds=30))
    assert (result.exit_code, len(result.stdout), result.truncated, result.timed_out) == (None, 1000, True, False)
    assert result.seconds < 15


def test_output_of_exactly_the_limit_is_not_cut():
    assert not run("print('x' * 999)", limits=Limits(output_bytes=1000)).truncated


def test_memory_above_the_limit_is_an_error_of_the_program():
    result = run("x = bytearray(1 << 29)", limits=Limits(memory_bytes=1 << 28))
    assert result.exit_code == 1
    assert "MemoryError" in result.stderr


def test_processor_time_ends():
    result = run("while True: pass", limits=Limits(cpu_seconds=1, wall_seconds=10))
    assert result.exit_code == -signal.SIGXCPU


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="wall_seconds must be more than 0"):
        replace(Limits(), wall_seconds=0)


def test_many_threads_run_programs_at_once():
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda at: run(f"print({at})").stdout, range(40)))
    assert results == [f"{at}\n" for at in range(40)]


def test_sandbox_that_died_while_it_waited_is_replaced(sandbox, tmp_path):
    program = (
        "import functools, os, signal, time\nfrom pathlib import Path\nfrom gem.sandbox import run\n"
        f"run = functools.partial(run, backend={sandbox!r})\nrun('')\n"
        "process = os.getpid()\n"
        "while children := Path(f'/proc/{process}/task/{process}/children').read_text().split():\n"
        "    process = int(children[0])\n"
        "os.kill(process, 9)\ntime.sleep(0.2)\nassert run('print(1)').stdout == '1\\n'"
    )
    variables = {**os.environ, "TMPDIR": str(tmp_path)}  # in which what is killed may leave a folder
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20, env=variables)


def test_fork_does_not_use_the_sandboxes_of_its_parent(sandbox):
    program = (
        "import functools, os\nfrom gem.sandbox import run\n"
        f"run = functools.partial(run, backend={sandbox!r})\nassert run('print(1)').stdout == '1\\n'\n"
        "child = os.fork()\nassert run('print(2)').stdout == '2\\n'\n"
        "if child == 0: os._exit(0)\nassert os.waitpid(child, 0)[1] == 0"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)


def test_home_is_the_folder_of_the_run_and_nothing_of_the_start_is_left(sandbox):
    program = (
        "import os, tempfile\nprint(os.environ['HOME'] == os.getcwd(), 'LD_BIND_NOW' in os.environ)\n"
        "print(os.path.dirname(tempfile.mkdtemp()) == os.environ['TMPDIR'])"
    )
    assert run(program, backend=sandbox).stdout == "True False\nTrue\n"


def test_sandbox_that_cannot_start_says_why():
    with pytest.raises(SandboxUnavailable, match="did not start: it broke"):
        Sandbox(["sh", "-c", "echo it broke >&2; exit 1"], {})


def test_description_was_found_by_trying(sandbox):
    description = describe(sandbox)
    assert description.backend == sandbox
    assert {"network", "files of this user", "environment variables", "other processes"} <= set(description.keeps_out)
    weaker = {
        "their names, if they are guessed",
        "more processes than the limit, for a moment",
        "more bytes in files than the limit, for a moment",
    }
    assert set(description.lets_through) == (weaker if sandbox == "landlock" else set())


@pytest.mark.filterwarnings("ignore:backend='plain'")
def test_description_of_no_sandbox_says_what_it_lets_through():
    assert {"network", "files of this user"} <= set(describe("plain").lets_through)


def test_plain_warns():
    pools._warn.cache_clear()
    with pytest.warns(UserWarning, match="isolates nothing"):
        assert run("print(1)", backend="plain").stdout == "1\n"


def test_a_long_command_arrives():
    text = "x" * 100_000
    assert run(["echo", text]).stdout == f"{text}\n"
    assert "too long" in run(["echo", "x" * 1_000_000]).stderr
    for command in ([], ["echo", "a\0b"], ["ec\0ho"]):
        with pytest.raises(ValueError, match="NUL"):
            run(command)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -1, 10**30])
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_a_limit_has_an_end(name, value):
    with pytest.raises(ValueError, match=f"{name} must be more than 0 and have an end"):
        Limits(**{name: value})
