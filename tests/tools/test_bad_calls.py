"""A call that hangs, crashes or floods costs its own episode's turn, and nothing else; and nothing is left of it."""

import gc
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import descendants, handles, resident

import gem
from gem.sandbox import SandboxUnavailable
from gem.sandbox.pool import find_backend
from gem.tools.python_code_tool import PythonCodeTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper

BAD = {
    "hangs": ("while True: pass", "timed out"),
    "sleeps": ("import time; time.sleep(99)", "timed out"),
    "crashes": ("import os; os.abort()", "SIGABRT"),
    "raises": ("1 / 0", "ZeroDivisionError"),
    "floods the output": ("while True: print('x' * 10_000)", "wrote too much"),
    "leaves children": (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0: time.sleep(99)\nprint('left')",
        "left",
    ),
    "fills the disk": ("open('big', 'wb').write(bytes(1 << 30))", "Error"),
    "takes memory": ("x = bytearray(64 << 30)", "MemoryError"),
}


@pytest.fixture(scope="module", autouse=True)
def _sandbox():
    try:
        find_backend()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def make(timeout):
    env = ToolEnvWrapper(
        gem.make("game:GuessTheNumber-v0"), [PythonCodeTool(timeout=timeout)], tool_reward=0.25, max_tool_uses=None
    )
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("name", BAD)
def test_bad_call_costs_its_own_turn(name):
    code, says = BAD[name]
    env = make(timeout=1)
    observation, reward, terminated, truncated, info = env.step(f"<python>{code}</python>")
    assert says in observation
    assert (reward, terminated, truncated, info["use_tool"]) == (0.25, False, False, True)
    assert "1 + 1 = 2" in env.step("<python>print('1 + 1 =', 1 + 1)</python>")[0]
    assert env.step("\\boxed{1}")[4]["use_tool"] is False


def test_other_episodes_do_not_notice():
    envs = [make(timeout=2) for _ in range(8)]

    def play(at):
        if at % 2:
            return [envs[at].step(f"<python>{list(BAD.values())[at % len(BAD)][0]}</python>")[0]]
        return [envs[at].step(f"<python>print({at} * {n})</python>")[0] for n in range(20)]

    with ThreadPoolExecutor(8) as pool:
        played = list(pool.map(play, range(8)))
    for at in range(0, 8, 2):
        assert played[at] == [f"Code execution result: {at * n}\n" for n in range(20)]


def test_1000_bad_calls_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = make(timeout=0.05)
    codes = [code for code, _ in BAD.values()]
    for code in codes:
        env.step(f"<python>{code}</python>")
    gc.collect()
    before, held = left(), resident()
    for at in range(1000):
        assert env.step(f"<python>{codes[at % len(codes)]}</python>")[4]["use_tool"]
    gc.collect()
    deadline = time.monotonic() + 5
    while left() != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left() == before
    assert list(tmp_path.iterdir()) == []
    assert resident() - held < 16 << 20


def left():
    """Return how many processes, handles and threads there are."""
    return len(descendants()), handles(), threading.active_count()
