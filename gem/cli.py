"""The command line: ``gem envs``, ``play``, ``check``, ``bench``; of episodes ``gem diff``, ``replay`` and ``export``.

Exit codes: 0, all is well; 1, an environment failed its check or cannot be imported, or episodes differ, do not hold or
cannot be exported; 2, the command or a file that it names cannot be understood. An error is one line on stderr.
"""

from __future__ import annotations

import fnmatch
import inspect
import itertools
import json
import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from enum import Enum
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from gem.core import Env
from gem.envs.datasets import needs_hub
from gem.envs.reasoning_gym import PAY_FOR_JUNK
from gem.envs.registration import EnvSpec, all_specs, find_spec, make
from gem.files import replace_file, whole_lines
from gem.rollout.atif import to_atif, validate_atif
from gem.rollout.diff import Difference, TurnTokens, episode_differences
from gem.rollout.episode import Episode
from gem.rollout.replay import replay as replay_episode
from gem.tasks import ALLOW_UNSANDBOXED
from gem.testing.check_env import CheckResult, run_checks

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

    Type an action and press Enter: a bare answer is put into the form that is asked for, \boxed{...} say.

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
    all_envs: Annotated[bool, typer.Option("--all", help="Check every environment that needs no hub.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes that check; with --all, one per core.")] = None,
) -> None:
    """Check that environments keep the contract: determinism, state, any text, rewards and more."""
    if bool(env_ids) == all_envs:
        _stop("name the environments to check, or pass --all")
    left_out = {env_id: why for env_id, spec in all_specs().items() if (why := _why_left_out(spec))} if all_envs else {}
    ids = [env_id for env_id in all_specs() if env_id not in left_out] if all_envs else list(env_ids or ())
    for env_id in ids:
        _find(env_id)
    processes = jobs or ((os.cpu_count() or 1) if all_envs else 1)
    failed = [env_id for env_id, results in _checked(ids, processes) if not _passed(env_id, results)]
    for why, group in itertools.groupby(sorted(left_out, key=left_out.__getitem__), left_out.__getitem__):
        _say(f"not checked, {why}: {', '.join(group)}")
    if failed:
        _say(f"{len(failed)} of {len(ids)} failed: {', '.join(failed)}")
        raise typer.Exit(1)
    _say(f"{len(ids)} of {len(ids)} passed")


@app.command()
def bench(
    env_id: Annotated[str, typer.Argument(metavar="ID", help="The environment.")],
    sizes: Annotated[str, typer.Option(help="How many environments, separated by commas.")] = "1,16,256",
    backends: Annotated[str, typer.Option(help="sync, thread, asyncio, process, ray; by default what fits.")] = "",
    seconds: Annotated[float, typer.Option(min=0.03, help="A measurement.")] = 1.0,
) -> None:
    """Measure steps per second by back end and number of environments, with random legal actions."""
    from gem.vector.backends import BACKENDS
    from gem.vector.bench import throughput

    with _build(env_id) as env:
        names = backends.split(",") if backends else ["sync", "thread", "process"] + ["asyncio"] * env.asynchronous
    if unknown := [name for name in names if name not in BACKENDS]:
        _stop(f"there is no backend {unknown[0]!r}; there are {', '.join(BACKENDS)}")
    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        _stop(f"--sizes takes whole numbers from 1, separated by commas, not {sizes!r}")
    table = Table("steps per second", *map(str, numbers), box=box.SIMPLE_HEAD)
    measurements = list(itertools.product(names, numbers))
    bar = Console(stderr=True)
    try:
        rates = [
            f"{throughput(env_id, name, size, seconds):,.0f}"
            for name, size in track(measurements, env_id, console=bar, transient=True, disable=not bar.is_terminal)
        ]
    except (ImportError, NotImplementedError, RuntimeError) as error:
        _stop(str(error), code=1)
    for number, name in enumerate(names):
        table.add_row(name, *rates[number * len(numbers) : (number + 1) * len(numbers)])
    _console().print(table)


@app.command()
def doctor() -> None:
    """Try out what the sandbox keeps from code that a model writes, on this machine."""
    from gem.sandbox import describe

    found = describe()
    if not found.backend:
        _stop(found.problem, code=1)
    _say(f"sandbox: {found.backend}")
    for name in found.keeps_out:
        _say(f"  ✓ keeps out: {name}")
    for name in found.lets_through:
        _say(f"  ✗ lets through: {name}")
    if found.lets_through:
        raise typer.Exit(1)


@app.command()
def serve_search(
    corpus: Annotated[
        Path | None, typer.Argument(help="JSON lines; without it, the small corpus of the package.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Serve a corpus to SearchTool, and to whatever speaks the protocols of gem-llm or Search-R1."""
    from gem.tools.corpus import SHIPPED
    from gem.tools.search_server import serve

    try:
        serve(corpus or SHIPPED, host, port)
    except (ImportError, OSError, ValueError) as error:
        _stop(str(error))


_Episodes = Annotated[Path, typer.Argument(metavar="EPISODES", help="A file of episodes, a JSON line each.")]
_Limit = Annotated[int, typer.Option(min=1, help="How many episodes to show at most.")]


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A file of episodes, a JSON line each.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    tokenizer: Annotated[str | None, typer.Option(help="Show tokens as its text too: a folder or an id.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="How far two numbers may be apart.")] = 1e-6,
    limit: _Limit = 20,
) -> None:
    """Show where the episodes of two files part: the first with the first, the second with the second, ..."""
    episodes, others = _read(a), _read(b)
    text_of = _token_text(tokenizer)
    differences = episode_differences(episodes, others, tolerance)
    if not differences:
        _say(f"{len(episodes)} of {len(episodes)} episodes are the same")
        return
    console = _console()
    differing = [
        (number, list(found))
        for number, found in itertools.groupby(differences, attrgetter("episode"))
        if number <= min(len(episodes), len(others))
    ]
    for number, found in differing[:limit]:
        _show_lines(console, _name(number, episodes[number - 1]))
        for difference in found:
            _show(console, difference, text_of)
    _more(len(differing) - limit)
    _say(f"{len(differing)} of {min(len(episodes), len(others))} episodes differ")
    if len(episodes) != len(others):
        _say(f"{a} has {len(episodes)} episodes, {b} has {len(others)}")
    raise typer.Exit(1)


@app.command()
def replay(
    path: _Episodes,
    limit: _Limit = 20,
    allow_unsandboxed: Annotated[
        bool, typer.Option(help="Run commands and programs in the file without a sandbox where it asks for that.")
    ] = False,
) -> None:
    """Play recorded episodes again: does what their environments say still hold, bit for bit?"""
    if allow_unsandboxed:
        os.environ[ALLOW_UNSANDBOXED] = "1"
    episodes = _read(path)
    if not episodes:
        _stop(f"{path} holds no episode")
    bar = Console(stderr=True)
    playing = track(episodes, "Replaying", console=bar, transient=True, disable=not bar.is_terminal)
    failed = [(number, found) for number, episode in enumerate(playing, start=1) if (found := _replay(episode))]
    console = _console()
    for number, found in failed[:limit]:
        _show_lines(console, f"✗ {_name(number, episodes[number - 1])}")
        for line in found:
            _show_lines(console, f"    {line}")
    _more(len(failed) - limit)
    if failed:
        _say(f"{len(failed)} of {len(episodes)} episodes do not hold")
        raise typer.Exit(1)
    _say(f"{len(episodes)} of {len(episodes)} episodes hold")


class ExportFormat(str, Enum):
    """What ``gem export`` writes."""

    atif = "atif"


@app.command()
def export(
    path: _Episodes,
    out: Annotated[Path, typer.Option(help="The file to write, a JSON line a trajectory.")],
    format_: Annotated[ExportFormat, typer.Option("--format", help="Agent Trajectory Interchange Format.")],
    validate: Annotated[bool, typer.Option(help="Check what is written with the package atif.")] = True,
) -> None:
    """Write episodes in a format that other programs read."""
    lines = [_exported(number, episode, validate) for number, episode in enumerate(_read(path), start=1)]
    if out.exists() and out.samefile(path):
        _stop(f"{out} is the file of the episodes; name another for --out")
    try:
        replace_file(out, "".join(lines))
    except OSError as error:
        _stop(f"cannot write {out}: {error.strerror}")
    _say(f"wrote {len(lines)} trajectories to {out}")


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
    return _turns(spec, entry), rewards, "a hub" if needs_hub(spec) else ""


def _turns(spec: EnvSpec, entry: Any) -> str:
    parameters = inspect.signature(entry.__init__ if inspect.isclass(entry) else entry).parameters
    if "max_turns" in parameters:
        turns = spec.kwargs.get("max_turns", parameters["max_turns"].default)
        return "varies" if turns is None else str(turns)
    turns = getattr(entry, "max_turns", None)
    return "" if turns is None else str(turns)


def _play(env: Env, seed: int | None, act: Callable[[Env, str], str]) -> None:
    observation, _ = env.reset(seed=seed)
    total = 0.0
    for turn in itertools.count(1):
        _say(f"\n{observation}\n")
        observation, reward, terminated, truncated, info = env.step(act(env, observation))
        total += reward
        _say(f"turn {turn}: reward {reward:g}, return {total:g}")
        if terminated or truncated:
            break
    outcome = "" if "success" not in info else ", solved" if info["success"] else ", not solved"
    _say(f"\n{observation}\n\n{'Terminated' if terminated else 'Truncated'}{outcome}. Return {total:g}.")


def _random_action(env: Env, observation: str) -> str:
    action = env.sample_random_action()
    _say(f"> {action}")
    return action


def _typed_action(env: Env, observation: str) -> str:
    text = ""
    while not text.strip():  # Enter alone is no action
        text = input("> ")
    if any(form in text for form in ("\\boxed", "<answer>", "```")):
        return text
    return f"<answer>{text}</answer>" if "<answer>" in observation else f"\\boxed{{{text}}}"


def _why_left_out(spec: EnvSpec) -> str:
    """Return why ``gem check --all`` leaves an environment out; "" if it does not."""
    if spec.id.removeprefix("rg:") in PAY_FOR_JUNK and spec.id.startswith("rg:"):
        return "their scorers pay for junk"
    return "they need a hub" if needs_hub(spec) else ""


def _checked(ids: list[str], processes: int) -> Iterator[tuple[str, Iterable[CheckResult]]]:
    """Yield the results of each environment's checks, in the order of ``ids``."""
    if processes == 1:
        yield from ((env_id, run_checks(env_id)) for env_id in ids)
        return
    context = multiprocessing.get_context("spawn")  # threads and forks do not go together
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool:
        yield from zip(ids, pool.map(_all_checks, ids), strict=True)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, whatever it computes."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is called in a process of a pool"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _all_checks(env_id: str) -> list[CheckResult]:
    return list(run_checks(env_id))


def _passed(env_id: str, results: Iterable[CheckResult]) -> bool:
    console = _console()
    _show_lines(console, env_id)
    passed = True
    for result in results:
        line = f"✗ {result.error}" if result.error else f"✓ {result.name}{f' ({result.note})' if result.note else ''}"
        _show_lines(console, f"  {line}")
        passed = passed and result.error is None
    return passed


def _read(path: Path) -> list[Episode]:
    """Return the episodes of a file; a line that a crash has torn is told, and left out."""
    episodes, torn = [], []
    try:
        for number, line in whole_lines(path):
            if line is None:
                torn.append(number)
            else:
                episodes.append(_episode(line, path, number))
    except OSError as error:
        _stop(f"cannot read {path}: {error.strerror}")
    if torn and not episodes:
        _stop(f"{path}, line {torn[0]} is no episode: it is not JSON in UTF-8")
    if torn:
        _warn(f"{path}: {_lines(torn)} torn, and left out")
    return episodes


def _episode(line: str, path: Path, number: int) -> Episode:
    try:
        return Episode.from_json(line)
    except ValueError as error:
        _stop(f"{path}, line {number} is no episode: {error}")


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
    return f"line {shown} is" if len(numbers) == 1 else f"lines {shown} are"


def _name(number: int, episode: Episode) -> str:
    task = episode.task
    return f"episode {number}: {task.env_id}, {task.split} seed {task.seed}"


def _more(number: int) -> None:
    if number > 0:
        _say(f"... and {number} more episodes; --limit shows more")


def _replay(episode: Episode) -> list[str]:
    try:
        find_spec(episode.task.env_id)
    except ValueError as error:
        return [str(error)]
    try:
        return replay_episode(episode)
    except Exception as error:  # noqa: BLE001 (whatever the environment raises is the finding)
        return [f"{type(error).__name__}: {error}"]


def _exported(number: int, episode: Episode, validate: bool) -> str:
    trajectory = to_atif(episode)
    try:
        if validate:
            validate_atif(trajectory)
    except ImportError as error:
        _stop(f"{error}, or pass --no-validate", code=1)
    except ValueError as error:
        _stop(f"{_name(number, episode)}: {' '.join(str(error).split())}", code=1)
    return json.dumps(trajectory) + "\n"


def _token_text(tokenizer: str | None) -> Callable[[int], str]:
    """Return what shows a token: its id, and its text if there is a tokenizer."""
    if tokenizer is None:
        return str
    try:
        from transformers import AutoTokenizer
    except ImportError:
        _stop("--tokenizer needs transformers: pip install transformers")
    try:
        decode = AutoTokenizer.from_pretrained(tokenizer).decode
    except (OSError, ValueError) as error:
        _stop(f"cannot load the tokenizer {tokenizer}: {' '.join(str(error).split())}")
    return lambda token: f"{token} {decode([token])!r}"


def _show(console: Console, difference: Difference, text_of: Callable[[int], str]) -> None:
    """Print a difference: what it is and where, and both sides around the first place that is not the same."""
    turn = "" if difference.turn is None else f"turn {difference.turn}: "
    at = "" if difference.at is None else f" at position {difference.at}"
    _show_lines(console, f"  {turn}{difference.what}{at}")
    if difference.what in ("prompt token", "sampled token", "mask") and difference.at is not None:
        sides = [_tokens_around(tokens, difference.at, text_of) for tokens in (difference.a, difference.b)]
    else:
        sides = _texts_around(repr(difference.a), repr(difference.b))
    for name, side in zip("ab", sides, strict=True):
        console.print(Text(f"    {name}: ").append_text(side), soft_wrap=True)


def _tokens_around(tokens: TurnTokens, at: int, text_of: Callable[[int], str], width: int = 5) -> Text:
    def words(ids: list[int]) -> str:
        return "".join(f"{text_of(token)} " for token in ids)

    first, last = max(0, at - width), at + width + 1
    text = Text(f"{'... ' * (first > 0)}{words(tokens.ids[first:at])}")
    if at >= len(tokens.ids):
        return text.append("[nothing]", style="bold red")
    text.append(f"[{text_of(tokens.ids[at])}]", style="bold red")
    text.append(f" {words(tokens.ids[at + 1 : last])}{'... ' * (last < len(tokens.ids))}")
    return text.append("(sampled)" if at in tokens.sampled else "(not sampled)")


def _texts_around(a: str, b: str, width: int = 50) -> list[Text]:
    at = next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    first, last = max(0, at - width), at + width
    if first < 10:
        first = 0  # the dots would not be shorter
    sides = []
    for text in (a, b):
        side = Text(f"{'...' * (first > 0)}{text[first:at]}").append(text[at:last], style="bold red")
        sides.append(side.append("..." * (last < len(text))))
    return sides


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


def _show_lines(console: Console, text: str) -> None:
    console.print(printable(text), soft_wrap=True)


def printable(text: str) -> str:
    r"""Write out what a terminal would take for a command, or not show: texts come from files and environments.

    >>> print(printable("\x1b[2J naïve 日本"))
    \x1b[2J naïve 日本
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _say(text: str) -> None:
    typer.echo(printable(text))


def _warn(message: str) -> None:
    typer.echo(printable(f"gem: {message}"), err=True)


def _stop(message: str, code: int = 2) -> NoReturn:
    _warn(message)
    raise typer.Exit(code)
