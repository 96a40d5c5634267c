"""What is particular to the sandbox that Landlock makes, where there are no namespaces."""

import os
import signal
import time
from pathlib import Path

import pytest

from gem.sandbox import Limits, SandboxUnavailable, Session, confining, run, starting
from gem.sandbox import pool as pools


@pytest.fixture(autouse=True)
def landlock():
    try:
        starting.start_landlock().close()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def run_here(program, **limits):
    return run(program, limits=Limits(**limits), backend="landlock")


def fail():
    raise SandboxUnavailable("no namespaces")


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_used_where_bubblewrap_does_not_work_and_that_is_told(monkeypatch):
    monkeypatch.setitem(pools.BACKENDS, "bubblewrap", fail)
    with pytest.warns(UserWarning, match="no namespaces. So landlock is used"):
        assert pools.find_backend.__wrapped__() == "landlock"


def test_nothing_is_used_where_neither_works(monkeypatch):
    monkeypatch.setitem(pools.BACKENDS, "bubblewrap", fail)
    monkeypatch.setattr(starting, "find_spec", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="bubblewrap: no namespaces; landlock: sandlock is not installed"):
        pools.find_backend.__wrapped__()


def test_runs_at_the_same_time_cannot_reach_each_other():
    with Session(backend="landlock") as one, Session(backend="landlock") as other:
        place = one.run("import os\nopen('file', 'w').close()\nprint(os.getcwd(), os.getpid())").stdout.split()
        result = other.run(
            f"import os\nfolder, process = {place!r}\n"
            "for name, code in {\n"
            "    'list': lambda: os.listdir(folder), 'read': lambda: open(folder + '/file'),\n"
            "    'write': lambda: open(folder + '/new', 'w'), 'remove': lambda: os.remove(folder + '/file'),\n"
            "    'kill': lambda: os.kill(int(process), 9), 'memory': lambda: open(f'/proc/{process}/mem', 'rb'),\n"
            "    'variables': lambda: open(f'/proc/{process}/environ'), 'own': lambda: open('file', 'w'),\n"
            "}.items():\n"
            "    try:\n        code()\n        print(name)\n    except PermissionError:\n        pass"
        )
        assert (result.stdout, result.stderr) == ("own\n", "")
        assert one.run("print(os.listdir())").stdout == "['file']\n"


@pytest.mark.parametrize(
    "start", ["subprocess.Popen(['sleep', '9'])", "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"]
)
def test_more_processes_or_threads_than_the_limit_end_the_program(start):
    program = (
        f"import subprocess, threading, time\nfor _ in range(COUNT): {start}\ntime.sleep(0.5)\nprint('end', flush=True)"
    )
    result = run_here(f"COUNT = 8\n{program}", processes=8)
    assert (result.exit_code, result.stdout, result.timed_out) == (None, "", False)
    assert result.seconds < 3
    assert run_here(f"COUNT = 7\n{program}\nimport os\nos._exit(0)", processes=8).stdout == "end\n"


def test_processes_one_after_another_are_no_more_than_one():
    program = (
        "import subprocess, time\n"
        "for _ in range(40):\n"
        "    subprocess.run('(sleep 0.05 &)', shell=True, check=True)\n"  # which the supervisor adopts
        "    time.sleep(0.01)\n"
        "print('end')"
    )
    assert run_here(program, processes=16).stdout == "end\n"


def test_shells_are_not_disturbed():
    command = "i=0; while [ $i -lt 60 ]; do echo $i | cat > out; cat out > copy & i=$((i + 1)); done; wait; cat copy"
    results = [run(["sh", "-c", command], backend="landlock") for _ in range(3)]
    assert [(result.exit_code, result.stderr) for result in results] == [(0, "")] * 3


def test_programs_use_pipes_pairs_of_sockets_and_processes():
    program = (
        "import asyncio, shutil, socket, subprocess\n"
        "async def ask():\n"
        "    child = await asyncio.create_subprocess_exec('cat', stdin=-1, stdout=-1)\n"
        "    return await child.communicate(b'hello')\n"
        "print(asyncio.run(ask())[0])\n"
        "print(subprocess.run('echo $((1 + 1)) | cat > out; cat out', shell=True, stdout=-1).stdout)\n"
        "print(shutil.copyfile('out', 'copy'))\n"
        "print(subprocess.run(['sh', '-c', 'exit 3'], stdout=subprocess.DEVNULL).returncode)"
    )
    result = run_here(program)
    assert (result.stdout, result.stderr) == ("b'hello'\nb'2\\n'\ncopy\n3\n", "")


def test_files_above_the_limit_end_the_program():
    program = "import time\nfor name in 'abcd':\n    open(name, 'wb').write(bytes(1 << 20))\ntime.sleep(9)"
    result = run_here(program, file_bytes=2 << 20)
    assert (result.exit_code, result.timed_out) == (None, False)
    assert result.seconds < 5
    assert run_here(program.replace("sleep(9)", "sleep(0.2)"), file_bytes=8 << 20).exit_code == 0


def test_many_files_end_the_program():
    result = run_here("import time\nfor at in range(17_000):\n    open(str(at), 'w').close()\ntime.sleep(9)")
    assert (result.exit_code, result.timed_out) == (None, False)


@pytest.mark.filterwarnings("ignore:backend='plain'")
@pytest.mark.parametrize("backend", ["landlock", "plain"])
@pytest.mark.parametrize(
    "program",
    ["for _ in range(1100):\n    os.mkdir('d')\n    os.chdir('d')", "os.makedirs('a/b', 0)"],
)
def test_folders_that_are_hard_to_remove_are_removed(program, backend):
    folder = run(f"import os\nprint(os.getcwd(), flush=True)\n{program}", backend=backend).stdout.strip()
    assert os.path.basename(folder).startswith(f"gem-{backend}-")
    assert not os.path.exists(folder)


def test_program_cannot_touch_its_keeper():
    program = (
        "import os, signal\nfor number in (0, signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):\n"
        "    try:\n        os.kill(os.getppid(), number)\n        print(number)\n"
        "    except PermissionError:\n        pass"
    )
    result = run_here(program)
    assert (result.exit_code, result.stdout) == (0, "")


def test_keeper_that_could_signal_others_does_not_go_on(monkeypatch):
    monkeypatch.setattr(confining, "_confine", lambda folder, readable: None)
    monkeypatch.setattr(os, "getppid", os.getpid)  # the parent of these tests may be another user's
    with pytest.raises(SystemExit, match="does not hold back signals"):
        confining.confine_supervisor("/tmp", [])


def test_program_ends_with_its_sandbox_however_that_ends():
    session = Session(backend="landlock")
    process, folder = session.run("import os; print(os.getpid(), os.getcwd())").stdout.split()
    assert is_alive(process)
    sandbox = session._process._sandbox
    os.kill(sandbox._process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 2
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(process)
    session.close()
    os.rmdir(folder)


def test_descendants_that_flee_again_and_again_are_killed():
    program = (
        "import os\nprint(os.getcwd(), flush=True)\n"
        "for _ in range(4):\n    if os.fork() == 0: break\n"
        "while True:\n"
        "    if os.fork() != 0: os._exit(0)\n"
        "    os.setsid()"
    )
    folder = run_here(program, wall_seconds=0.3).stdout.strip()
    assert os.path.basename(folder).startswith("gem-landlock-")
    assert not [path for path in Path("/proc").glob("[0-9]*") if folder_of(path).startswith(folder)]


def folder_of(process):
    try:
        return os.readlink(f"{process}/cwd")
    except OSError:
        return ""
