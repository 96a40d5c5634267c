"""The command line: ``gem envs``, ``gem play``, ``gem check``.

Exit codes: 0, all is well; 1, an environment failed its check or cannot be imported; 2, the command
cannot be understood. An error is one line on stderr.
"""

from __future__ import annotations

import fnmatch
import inspect
import itertools
import math
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from gem.core import Env
from gem.envs.registration import EnvSpec, all_specs, find_spec, make
from gem.testing.check_env import run_checks

app = typer.Typer(
    help="GEM, a gym for language-model agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.command()
def envs(
    pattern: Annotated[str, typer.Argument(help="Part of an id; * and ? stand for any text.")] = "",
) -> None:
    """List the environments."""
    specs = [spec for spec in all_specs().values() if fnmatch.fnmatch(spec.id.lower(), f"*{pattern.lower()}*")]
    if not specs:
        _stop(f"no environment matches {pattern!r}; `gem envs` lists them all")
    table = Table("id", "turns", "rewards", "needs", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for spec in specs:
        table.add_row(spec.id, *_describe(spec))
    _console().print(table)


@app.command()
def play(
    env_id: Annotated[str, typer.Argument(metavar="ID", help="The environment.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Fixes the episode.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Let random legal actions play.")] = False,
) -> None:
    r"""Play an environment in the terminal.

    Type an action and press Enter: text without \boxed is put into \boxed{...}.

    Ctrl-D or Ctrl-C leaves the game.
    """
    with _build(env_id) as env:
        try:
            _play(env, seed, _random_action if random else _typed_action)
        except (EOFError, KeyboardInterrupt):
            _say("\nThe game was left.")
        except NotImplementedError as error:
            _stop(str(error))


@app.command()
def check(
    env_ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="The environments.")] = None,
    all_envs: Annotated[bool, typer.Option("--all", help="Check every environment.")] = False,
) -> None:
    """Check that environments keep the contract: determinism, state, any text, rewards and more."""
    if bool(env_ids) == all_envs:
        _stop("name the environments to check, or pass --all")
    ids = list(all_specs()) if all_envs else list(env_ids or ())
    for env_id in ids:
        _find(env_id)
    failed = [env_id for env_id in ids if not _passes(env_id)]
    if failed:
        _say(f"{len(failed)} of {len(ids)} failed: {', '.join(failed)}")
        raise typer.Exit(1)
    _say(f"{len(ids)} of {len(ids)} passed")


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no ✓ gets a question mark
    app(prog_name="gem")


def _describe(spec: EnvSpec) -> tuple[str, str, str]:
    """Return turns, rewards and needs, from the class alone: building some environments takes data."""
    try:
        entry = spec.load()
    except ImportError as error:
        return "", "", str(error)
    low, high = getattr(entry, "reward_range", Env.reward_range)
    rewards = f"{low:g} to {high:g}" if math.isfinite(low) and math.isfinite(high) else "any"
    return _turns(spec, entry), rewards, ""


def _turns(spec: EnvSpec, entry: Any) -> str:
    parameters = inspect.signature(entry.__init__ if inspect.isclass(entry) else entry).parameters
    if "max_turns" in parameters:
        turns = spec.kwargs.get("max_turns", parameters["max_turns"].default)
        return "varies" if turns is None else str(turns)
    turns = getattr(entry, "max_turns", None)
    return "" if turns is None else str(turns)


def _play(env: Env, seed: int | None, act: Callable[[Env], str]) -> None:
    observation, _ = env.reset(seed=seed)
    total = 0.0
    for turn in itertools.count(1):
        _say(f"\n{observation}\n")
        observation, reward, terminated, truncated, info = env.step(act(env))
        total += reward
        _say(f"turn {turn}: reward {reward:g}, return {total:g}")
        if terminated or truncated:
            break
    outcome = "" if "success" not in info else ", solved" if info["success"] else ", not solved"
    _say(f"\n{observation}\n\n{'Terminated' if terminated else 'Truncated'}{outcome}. Return {total:g}.")


def _random_action(env: Env) -> str:
    action = env.sample_random_action()
    _say(f"> {action}")
    return action


def _typed_action(env: Env) -> str:
    text = ""
    while not text.strip():  # Enter alone is no action
        text = input("> ")
    return text if "\\boxed" in text else f"\\boxed{{{text}}}"


def _passes(env_id: str) -> bool:
    console = _console()
    console.print(env_id)
    passed = True
    for result in run_checks(env_id):
        console.print(f"  ✗ {result.error}" if result.error else f"  ✓ {result.name}", soft_wrap=True)
        passed = passed and result.error is None
    return passed


def _find(env_id: str) -> EnvSpec:
    try:
        return find_spec(env_id)
    except ValueError as error:
        _stop(str(error))


def _build(env_id: str) -> Env:
    try:
        return make(_find(env_id).id)
    except (ImportError, TypeError, ValueError) as error:
        _stop(str(error), code=1)


def _console() -> Console:
    return Console(markup=False, emoji=False, highlight=False)


def _say(text: str) -> None:
    typer.echo(text)


def _stop(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"gem: {message}", err=True)
    raise typer.Exit(code)
