"""A session keeps variables, and what goes wrong in a call ends this session's process and nothing else."""

import pytest

from gem.sandbox import Limits, Session
from gem.sandbox.running import NEW_PROCESS

pytestmark = pytest.mark.usefixtures("sandbox")


def test_variables_files_and_imports_stay():
    with Session() as session:
        session.run("import math\nx = 2\nopen('file', 'w').write('text')")
        assert session.run("print(math.sqrt(x * 2), open('file').read())").stdout == "2.0 text\n"


def test_error_ends_the_call_and_not_the_session():
    with Session() as session:
        session.run("x = 1")
        result = session.run("y = 2\n1 / 0")
        assert result.exit_code == 1
        assert "line 2, in <module>\n    1 / 0" in result.stderr
        assert session.run("import sys; print(x, y); sys.exit(5)").exit_code == 5
        assert session.run("print(x)").stdout == "1\n"


def test_time_that_is_up_ends_the_process_and_the_next_call_says_so():
    with Session() as session:
        session.run("x = 1")
        result = session.run("print('before', flush=True)\nwhile True: pass", Limits(wall_seconds=0.3))
        assert (result.timed_out, result.exit_code, result.stdout) == (True, None, "before\n")
        assert 0.3 <= result.seconds < 0.6
        result = session.run("print('x' in globals())")
        assert (result.stdout, result.stderr) == ("False\n", NEW_PROCESS)
        assert session.run("print(1)").stderr == ""


def test_crash_ends_only_this_session():
    with Session() as crashing, Session() as other:
        other.run("x = 1")
        assert crashing.run("import os; os.abort()").exit_code == -6
        assert other.run("print(x)").stdout == "1\n"
        assert crashing.run("print(2)").stdout == "2\n"


def test_each_call_has_its_own_limits():
    with Session(Limits(output_bytes=100)) as session:
        assert session.run("print('x' * 200)").truncated
        result = session.run("print('x' * 200)", Limits(output_bytes=1000))
        assert (len(result.stdout), result.truncated) == (201, False)
        busy = "import time\nend = time.process_time() + 0.7\nwhile time.process_time() < end: pass"
        for _ in range(2):  # more than one second together
            assert session.run(busy, Limits(cpu_seconds=1)).exit_code == 0


def test_code_that_answers_in_the_place_of_its_process_fools_only_itself():
    with Session() as session:
        session.run("import socket; socket.socket(fileno=3).send(b'not a number')")
        assert session.run("print(1)").exit_code in (0, None)
    with Session() as session:
        assert session.run("print(1)").stdout == "1\n"


def test_closed_session_starts_anew():
    session = Session()
    session.run("x = 1")
    session.close()
    assert session.run("print('x' in globals())").stdout == "False\n"
    session.close()
