"""Attempts to get out are stopped, in all ways to start bubblewrap, and by Landlock; and they do get out of none."""

import os
from contextlib import ExitStack

import pytest

from gem.sandbox import SandboxUnavailable
from gem.sandbox.escapes import ATTEMPTS, NOT_STOPPED
from gem.sandbox.pool import BACKENDS, find_pool
from gem.sandbox.starting import in_bubblewrap, new_user
from gem.sandbox.targets import escaped, set_up_targets

IN_A_NAMESPACE = "bubblewrap in a user namespace"
BY_ANOTHER_USER = "bubblewrap in a user namespace, by another user"

STARTS = {
    IN_A_NAMESPACE: lambda: in_bubblewrap(root=False),
    BY_ANOTHER_USER: lambda: in_bubblewrap(root=False, user=new_user()),
}

# The kernel counts no processes of a user who is root outside, which is why root never starts it so but here.
NOT_STOPPED_FOR_ROOT = {
    "start more processes than the limit",
    "start more threads than the limit",
    "fork again and again",
}


@pytest.fixture(scope="module", params=["bubblewrap", "landlock", *STARTS])
def targets(request):
    if request.param in STARTS and os.geteuid() != 0:
        pytest.skip("the same as bubblewrap, for this user")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, start in STARTS.items():
            patch.setitem(BACKENDS, name, start)
        try:
            facts = stack.enter_context(set_up_targets(request.param))
        except SandboxUnavailable as error:
            pytest.skip(str(error))
        yield request.param, facts


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_attempt_is_stopped(attempt, targets):
    backend, facts = targets
    if backend == IN_A_NAMESPACE and attempt.name in NOT_STOPPED_FOR_ROOT:
        pytest.skip("root's processes are not counted in a user namespace")
    out = escaped(attempt, facts, backend)
    if out and (why := NOT_STOPPED.get(backend, {}).get(attempt.name)):
        pytest.xfail(why)
    assert not out


@pytest.mark.filterwarnings("ignore:backend='plain'")
def test_attempts_get_out_where_there_is_no_sandbox():
    with set_up_targets("plain") as facts:
        out = {attempt.name for attempt in ATTEMPTS if attempt.plain and escaped(attempt, facts, "plain")}
    assert out >= {
        "read a file of the user",
        "write a file of the user",
        "read what an earlier run left",
        "read another process's variables",
        "connect to this machine (TCP)",
        "connect to an abstract socket",
        "connect to a socket of another run",
        "leave a process behind",
        "start more processes than the limit",
        "take more memory than the limit, in parts",
        "fill the disk",
    }


def test_names_are_different():
    assert len({attempt.name for attempt in ATTEMPTS}) == len(ATTEMPTS)


def test_bubblewrap_stops_all_and_landlock_nearly():
    names = {attempt.name for attempt in ATTEMPTS}
    assert NOT_STOPPED.keys() == {"landlock"}
    assert NOT_STOPPED["landlock"].keys() <= names
    assert len(NOT_STOPPED["landlock"]) <= 7
    assert len(ATTEMPTS) >= 145


def test_no_sandbox_without_its_name():
    with pytest.raises(ValueError, match="backend must be one of auto, bubblewrap, landlock, plain"):
        find_pool("none")
