"""Recording an episode, and playing it again somewhere else.

Every check of determinism asks the same question: played again (later, in a thread, in another process),
does the episode come out the same? A recording keeps the actions with what they led to, so the answer
does not depend on how actions are sampled.
"""

from __future__ import annotations

import json
import multiprocessing
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from gem.core import Env
from gem.testing.interpreters import JOB_SECONDS, interpreters
from gem.workers import CallFailed, CallNotSent

MAX_TURNS = 100
"""Turns after which a recording stops."""


class Turn(NamedTuple):
    """What ``step`` returned, of whatever type it was."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any

    @property
    def ended(self) -> bool:
        """Whether the episode ended with this turn."""
        return bool(self.terminated or self.truncated)


@dataclass(frozen=True)
class Recording:
    """An episode.

    Attributes:
        seed: what ``reset`` was given.
        actions: the action of each turn.
        start: what ``reset`` returned.
        turns: what ``step`` returned, a turn each.
        lines: ``start`` and ``turns`` as text, as they were when they were returned.
    """

    seed: int
    actions: tuple[str, ...]
    start: tuple[Any, Any]
    turns: tuple[Turn, ...]
    lines: tuple[str, ...]


def as_line(result: Any) -> str:
    """Return what ``reset`` or ``step`` returned as text; what is no JSON data counts by its type."""

    def simplify(value: Any) -> Any:
        return float(value) if isinstance(value, numbers.Real) else type(value).__name__

    return json.dumps(result, default=simplify, skipkeys=True)


def random_action(env: Env) -> str:
    """Return a random action; a text that may mean anything where the environment has none to offer."""
    try:
        action = env.sample_random_action()
    except NotImplementedError:
        return "\\boxed{1}"
    return action if isinstance(action, str) else "\\boxed{1}"


def random_actions(env: Env, seed: int) -> list[str]:
    """Play an episode at random and return its actions."""
    env.reset(seed=seed)
    actions: list[str] = []
    while len(actions) < MAX_TURNS:
        actions.append(random_action(env))
        if Turn(*env.step(actions[-1])).ended:
            break
    return actions


def record(make: Callable[[], Env], seed: int) -> Recording:
    """Record the episode of a seed, played at random.

    The actions are chosen in one environment and recorded in another, so that a recording shows what
    the actions do, and not what sampling them does.
    """
    with make() as env:
        actions = random_actions(env, seed)
    with make() as env:
        start = env.reset(seed=seed)
        lines = [as_line(start)]
        turns = []
        for action in actions:
            turns.append(Turn(*env.step(action)))
            lines.append(as_line(turns[-1]))
            if turns[-1].ended:
                break
    return Recording(seed, tuple(actions[: len(turns)]), start, tuple(turns), tuple(lines))


def play(env: Env, actions: Iterable[str]) -> list[str]:
    """Step until the episode or the actions end; return one line per turn."""
    lines = []
    for action in actions:
        turn = Turn(*env.step(action))
        lines.append(as_line(turn))
        if turn.ended:
            break
    return lines


def replay(env: Env, recording: Recording) -> list[str]:
    """Play a recording again; return its lines as they are now."""
    return [as_line(env.reset(seed=recording.seed)), *play(env, recording.actions)]


def replay_all(make: Callable[[], Env], recordings: Sequence[Recording]) -> list[list[str]]:
    """Play recordings again, each in an environment of its own."""
    replays = []
    for recording in recordings:
        with make() as env:
            replays.append(replay(env, recording))
    return replays


def replay_in_processes(make: Callable[[], Env], recordings: Sequence[Recording]) -> list[list[list[str]]]:
    """Play recordings again in other interpreters, in which strings hash differently.

    A factory that cannot be imported there (a lambda, say) is replaced by ``spawn`` of the environment that
    it returns. If that cannot be imported either, a fork of this process plays, in which strings hash alike.

    Returns:
        What :func:`replay_all` returned, a process each.

    Raises:
        CallNotSent: the system has no fork.
        CallFailed: the other process failed.
    """
    scripts = [Recording(r.seed, r.actions, ("", {}), (), ()) for r in recordings]
    with make() as env:
        for factory in (make, env.spawn):
            try:
                return [
                    interpreter.call(replay_all, factory, scripts, timeout=JOB_SECONDS)
                    for interpreter in interpreters()
                ]
            except CallNotSent:
                pass
    return [_replay_in_fork(make, recordings)]


def _replay_in_fork(make: Callable[[], Env], recordings: Sequence[Recording]) -> list[list[str]]:
    if "fork" not in multiprocessing.get_all_start_methods():
        raise CallNotSent
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_replays, args=(sender, make, recordings))
    child.start()
    sender.close()  # else a child that dies would leave recv() waiting
    try:
        if not receiver.poll(JOB_SECONDS):
            raise CallFailed(f"the other process gave no answer in {JOB_SECONDS:.0f} s")
        return receiver.recv()
    except EOFError:
        raise CallFailed("the other process failed: its traceback is above") from None
    finally:
        child.kill()
        child.join()


def _send_replays(sender: Connection, make: Callable[[], Env], recordings: Sequence[Recording]) -> None:
    sender.send(replay_all(make, recordings))
