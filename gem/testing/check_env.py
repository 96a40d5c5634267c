"""Does an environment keep the contract of :mod:`gem.core`? ``check_env`` reports where it does not.

>>> from gem.testing import check_env
>>> len(check_env("game:GuessTheNumber-v0-easy")) > 20
True

The checks are in :mod:`gem.testing.checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from gem.core import Env, EnvSpec
from gem.envs.registration import make
from gem.faults import is_from_user
from gem.registry import find_spec, register_if_unknown
from gem.testing.checks import CHECKS, Check, CheckFailed, Subject
from gem.testing.checks.base import describe_error
from gem.testing.solvers import WIN_SHARES, Solver, find_solver


@dataclass(frozen=True)
class CheckResult:
    """How a check ended.

    Attributes:
        name: the check's name.
        error: what it found; None if the environment passed.
        note: what to know of a check that was passed.
    """

    name: str
    error: CheckFailed | None
    note: str = ""


def check_env(
    make_env: Callable[[], Env] | str,
    seeds: Sequence[int] = range(6),
    solver: Solver | None = None,
    thorough: bool = False,
) -> list[str]:
    """Run every check.

    Args:
        make_env: an id, or a function without arguments that builds the environment. Other processes
            must be able to import it, to be tested with strings that hash otherwise.
        seeds: of the episodes to play.
        solver: a scripted player (see :mod:`gem.testing.solvers`) that is to win; by default the one that
            this package has for the id, if there is one.
        thorough: give every check all the time that it needs, such as 100 questions to constant answers; by default,
            a check of a slow environment stops after seconds, and its note has how far it came.

    Returns:
        The names of the checks that the environment passed: all of them.

    Raises:
        CheckFailed: the environment fails; one line per check.
        ValueError: there is no environment of this id.
    """
    results = list(run_checks(make_env, seeds, solver, thorough))
    errors = [str(result.error) for result in results if result.error]
    if errors:
        raise CheckFailed("\n".join(errors))
    return [result.name for result in results]


def run_checks(
    make_env: Callable[[], Env] | str,
    seeds: Sequence[int] = range(6),
    solver: Solver | None = None,
    thorough: bool = False,
) -> Iterator[CheckResult]:
    """Run every check and yield each result as it comes; arguments and errors as in :func:`check_env`.

    An environment that cannot be built, reset or stepped at all is spared the checks that follow.
    """
    if isinstance(make_env, str):
        build: Callable[[], Env] = partial(_make_registered, find_spec(make_env))
        subject = Subject(build, tuple(seeds), solver or find_solver(make_env), WIN_SHARES.get(make_env, 1.0), thorough)
    else:
        subject = Subject(make_env, tuple(seeds), solver, thorough=thorough)
    for check in CHECKS:
        result = _run(check, subject)
        yield result
        if result.error and check.prerequisite:
            return


def _run(check: Check, subject: Subject) -> CheckResult:
    """Run a check on the environment under test; what it raises becomes an error of the result."""
    try:
        note = check.function(subject)
    except CheckFailed as failure:
        found = str(failure)
    except BaseException as error:
        if is_from_user(error):
            raise
        found = f"{describe_error(error)}. {check.promise}"
    else:
        return CheckResult(check.name, None, note or "")
    return CheckResult(check.name, CheckFailed(f"{check.name}: {' '.join(found.split())}"))


def _make_registered(spec: EnvSpec) -> Env:
    """Build the environment of an id, also in a process where nobody has registered it."""
    register_if_unknown(spec)
    return make(spec.id)
