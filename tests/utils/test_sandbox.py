"""Running programs and functions by their published names."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import gem
from gem.envs.code_env import CodeEnv
from gem.sandbox import SandboxUnavailable, Session, pool, run, starting
from gem.sandbox.pool import _warn
from gem.tools import PythonCodeTool, ToolEnvWrapper
from gem.utils import sandbox
from gem.utils.sandbox import FunctionProcess, run_python

START_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
"""


@pytest.mark.filterwarnings("ignore:backend='plain'")
@pytest.mark.parametrize("sandbox_type", ["auto", "none", "plain"])
def test_a_program_reads_and_writes(sandbox_type):
    assert run_python("print(input()[::-1])", sandbox_type, "abc") == (True, "cba\n", "")


def test_the_same_program_writes_the_same():
    code = "print({'apple', 'pear', 'plum', 'fig', 'quince'}, hash('a'))"
    assert len({run_python(code) for _ in range(4)}) == 1


def test_an_error_is_told_and_no_success():
    ended_well, out, err = run_python("print(1)\nraise ValueError('no')")
    assert (ended_well, out) == (False, "1\n")
    assert "ValueError: no" in err


def test_usual_imports_that_are_missing_are_there():
    assert run_python("print(sqrt(gcd(32, 16)), Counter('aa'))") == (True, "4.0 Counter({'a': 2})\n", "")
    ended_well, _, err = run_python("print(sqrt(-1))\n")
    assert (ended_well, "'sqrt' is not defined" in err) == (False, True)  # the program as it is
    assert not run_python("print(quadratic(4))")[0]
    with FunctionProcess("def f(x: List[int]):\n    return list(deque(x))", "f") as function:
        assert function.call([1, 2]) == [1, 2]


def test_sys_exit_is_an_end_like_another():
    assert run_python("import sys\nprint(1)\nsys.exit()")[:2] == (True, "1\n")
    assert run_python("import sys\nprint(1)\nsys.exit(3)")[:2] == (False, "1\n")


def test_a_program_that_hangs_is_ended_in_time():
    begin = time.monotonic()
    ended_well, out, err = run_python("print(1, flush=True)\nwhile True: pass", timeout=1)
    assert 1 <= time.monotonic() - begin < 1.3
    assert (ended_well, out) == (False, "1\n")
    assert "timed out after 1 seconds" in err


def test_no_sandbox_is_warned_about_and_ends_what_a_program_started():
    _warn.cache_clear()
    with pytest.warns(UserWarning, match="isolates nothing"):
        ended_well, out, _ = run_python(START_CHILD, "none")
    assert ended_well
    time.sleep(0.2)
    stat = Path(f"/proc/{int(out)}/stat")
    assert not stat.exists() or " Z " in stat.read_text()


def test_a_flood_of_output_is_an_error_and_takes_no_memory():
    ended_well, out, err = run_python("while True: print('x' * 10_000)", timeout=20)
    assert not ended_well
    assert len(out) == sandbox.OUTPUT_LIMIT
    assert "wrote too much" in err


def test_memory_is_limited():
    ended_well, _, err = run_python("x = bytearray(64 << 30)")
    assert not ended_well
    assert "MemoryError" in err


def test_variables_and_the_folder_of_this_process_are_not_the_programs(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    code = "import os\nprint('SECRET' in os.environ, os.getcwd())"
    _, out, _ = run_python(code)
    has_secret, folder = out.split()
    assert has_secret == "False"
    assert not Path(folder).exists()


def test_nothing_is_left_in_the_folder_of_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_python("open('made', 'w').write('x')")
    run_python("import time; time.sleep(9)", timeout=0.2)
    with FunctionProcess("def f(x): return x", "f") as function:
        function.call(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "code", ["", "...", "def f(:", "\x00", "print('\ud800')", "import os; os.kill(os.getpid(), 9)"]
)
def test_no_program_raises_here(code):
    run_python(code)


def test_programs_run_in_threads():
    with ThreadPoolExecutor(8) as pool:
        outs = pool.map(lambda n: run_python(f"print({n} ** 2)")[1], range(16))
        assert list(outs) == [f"{n**2}\n" for n in range(16)]


def test_an_unknown_sandbox_is_refused_and_a_missing_one_named(monkeypatch):
    with pytest.raises(ValueError, match=r"one of auto, bubblewrap, .*, none, bwrap, got 'docker'"):
        run_python("", "docker")
    monkeypatch.setattr(starting, "find_bubblewrap", lambda: None)
    with pytest.raises(SandboxUnavailable, match=r"gem-adapters\[sandbox\] brings it"):
        starting.start_bubblewrap()


@pytest.mark.parametrize("end", [40, 9])  # a signal without a name, and one with
def test_a_signal_that_ended_a_program_is_told(end):
    ended_well, _, err = run_python(f"import os; os.kill(os.getpid(), {end})")
    assert not ended_well
    assert "ended by" in err


def test_a_function_is_called_as_often_as_wanted():
    with FunctionProcess(
        "calls = 0\ndef f(a, b):\n    global calls\n    calls += 1\n    return [a + b, calls]", "f"
    ) as f:
        assert f.call(1, 2) == [3, 1]
        assert f.call("a", "b") == ["ab", 2]
        assert f.call((1,), (2.5, None)) == [(1, 2.5, None), 3]


def test_results_are_python_data():
    value = [(1, "a"), {(1, 2): {"b": None}, 3: [True]}, {4.5, "c"}, frozenset({6}), {"tuple": []}, "\ud800"]
    with FunctionProcess(f"def f():\n    return {value!r}", "f") as f:
        assert f.call() == value


def test_a_method_of_a_solution_is_a_function_too():
    with FunctionProcess("class Solution:\n    def f(self, x):\n        return -x", "f") as f:
        assert f.call(3) == -3


WRITE = """
import os, __main__
def write(text):
    __main__.results.write(text)
    __main__.results.flush()
    os._exit(0)
SAME_HASH = [each * (2**61 - 1) for each in range(20_000)]
"""


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("def g(): pass", RuntimeError, "Solution"),
        ("def f(x): raise KeyError(x)", RuntimeError, "KeyError"),
        ("def f(x): exit()", RuntimeError, "SystemExit"),
        ("def f(:", RuntimeError, "SyntaxError"),
        ("import os\ndef f(x): os._exit(0)", RuntimeError, "ended"),
        ("import os\nos._exit(0)", RuntimeError, "ended"),
        ("def f(x): return f", RuntimeError, "not JSON serializable"),
        ("def f(x):\n    while True: pass", TimeoutError, "time is up"),
        ("while True: pass", TimeoutError, "time is up"),
        ("import os\ndef f(x): os.close(results.fileno())", RuntimeError, "results"),
        ("import __main__\ndef f(x): __main__.results.write('[]'); return 1", RuntimeError, "ended"),
        ("def f(x): return 'x' * 10_000_000", RuntimeError, "too long"),
        (f"{WRITE}def f(x): write('9' * 900_000)", RuntimeError, "ended"),
        (f"{WRITE}def f(x): write('[' * 900_000)", RuntimeError, "ended"),
        (WRITE + "def f(x): write('{}')", RuntimeError, "ended"),
        (WRITE + 'def f(x): write(\'{"value": {"set": %s}}\' % SAME_HASH)', RuntimeError, "ended"),
        ("def f(x): return 2**8_000_000", RuntimeError, "too long|ended"),
    ],
)
def test_what_a_function_does_wrong_is_told(code, error, message):
    with FunctionProcess(code, "f", timeout=2) as f, pytest.raises(error, match=message):
        f.call(1)


def test_what_a_function_prints_and_reads_is_no_result():
    with FunctionProcess(
        'import sys\ndef f(x):\n    print(\'{"value": "9"}\')\n    sys.stdin.read()\n    return x', "f"
    ) as f:
        assert f.call(3) == 3


CODE = {"dataset": [{"problem": "", "tests": '{"inputs": [""], "outputs": [""]}'}]}


@pytest.mark.filterwarnings("ignore:backend='plain'")
@pytest.mark.parametrize(
    ("call", "advice", "follow"),
    [
        (lambda: run(""), "backend='plain'", lambda: run("", backend="plain")),
        (lambda: Session(), "backend='plain'", lambda: Session(backend="plain")),
        (lambda: run_python(""), "sandbox_type='none'", lambda: run_python("", sandbox_type="none")),
        (
            lambda: FunctionProcess("", "f"),
            "sandbox_type='none'",
            lambda: FunctionProcess("", "f", sandbox_type="none"),
        ),
        (lambda: CodeEnv(**CODE), "sandbox_type='none'", lambda: CodeEnv(**CODE, sandbox_type="none")),
        (
            lambda: gem.make("game:GuessTheNumber-v0", tools="python"),
            "ToolEnvWrapper(env, [PythonCodeTool(sandbox_type='none')]) in place of tools='python'",
            lambda: ToolEnvWrapper(gem.make("game:GuessTheNumber-v0"), [PythonCodeTool(sandbox_type="none")]),
        ),
    ],
)
def test_where_no_sandbox_works_the_advice_is_what_the_caller_takes(monkeypatch, call, advice, follow):
    def fail():
        raise SandboxUnavailable("no sandbox works here")

    monkeypatch.setattr(pool, "find_backend", fail)
    with pytest.raises(SandboxUnavailable) as caught:
        call()
    assert str(caught.value) == f"no sandbox works here. Code runs without isolation with {advice}."
    follow()
