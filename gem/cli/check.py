"""``gem check``: do environments keep the contract?"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from gem.cli.lookup import find
from gem.cli.printing import new_console, print_lines, say, stop
from gem.core import EnvSpec
from gem.registry import all_specs

if TYPE_CHECKING:
    from gem.testing.check_env import CheckResult


def check(
    env_ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="The environments.")] = None,
    all_envs: Annotated[bool, typer.Option("--all", help="Check every environment that needs no hub.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes that check; with --all, one per core.")] = None,
    thorough: Annotated[bool, typer.Option(help="Give every check all the time that it needs.")] = False,
) -> None:
    """Check that environments keep the contract: determinism, state, any text, rewards and more."""
    if bool(env_ids) == all_envs:
        stop("name the environments to check, or pass --all")
    left_out = {env_id: why for env_id, spec in all_specs().items() if (why := _why_left_out(spec))} if all_envs else {}
    ids = [env_id for env_id in all_specs() if env_id not in left_out] if all_envs else list(env_ids or ())
    for env_id in ids:
        find(env_id)
    processes = jobs or ((os.cpu_count() or 1) if all_envs else 1)
    failed = [env_id for env_id, results in _checked(ids, processes, thorough) if not _passed(env_id, results)]
    for why, group in itertools.groupby(sorted(left_out, key=left_out.__getitem__), left_out.__getitem__):
        say(f"not checked, {why}: {', '.join(group)}")
    if failed:
        say(f"{len(failed)} of {len(ids)} failed: {', '.join(failed)}")
        raise typer.Exit(1)
    say(f"{len(ids)} of {len(ids)} passed")


def _why_left_out(spec: EnvSpec) -> str:
    """Return why ``gem check --all`` leaves an environment out; "" if it does not."""
    from gem.envs.datasets import needs_hub
    from gem.envs.reasoning_gym import HACKABLE

    if spec.id.removeprefix("rg:") in HACKABLE and spec.id.startswith("rg:"):
        return "their scorers are hackable"
    return "they need a hub" if needs_hub(spec) else ""


def _checked(ids: list[str], processes: int, thorough: bool) -> Iterator[tuple[str, Iterable[CheckResult]]]:
    """Yield the results of each environment's checks, in the order of ``ids``."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from gem.testing.check_env import run_checks

    if processes == 1:
        yield from ((env_id, run_checks(env_id, thorough=thorough)) for env_id in ids)
        return
    context = multiprocessing.get_context("spawn")  # threads and forks do not go together
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool:
        yield from zip(ids, pool.map(_all_checks, ids, itertools.repeat(thorough)), strict=True)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, whatever it computes."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None, "this is called in a process of a pool"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _all_checks(env_id: str, thorough: bool) -> list[CheckResult]:
    from gem.testing.check_env import run_checks

    return list(run_checks(env_id, thorough=thorough))


def _passed(env_id: str, results: Iterable[CheckResult]) -> bool:
    console = new_console()
    print_lines(console, env_id)
    first: dict[str, str] = {}  # by what was found, the check that found it first
    passed = True
    for result in results:
        if result.error is None:
            print_lines(console, f"  ✓ {result.name}{f' ({result.note})' if result.note else ''}")
            continue
        passed = False
        found = str(result.error).removeprefix(f"{result.name}: ")
        if found in first:
            print_lines(console, f"  ✗ {result.name}: the same as {first[found]}")
        else:
            first[found] = result.name
            print_lines(console, f"  ✗ {result.error}")
    return passed
