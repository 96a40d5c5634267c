"""Collect episodes from a vector environment, without a barrier, and with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gem.vector.slot import AutoresetMode
from gem.vector.vector_env import VectorEnv


@dataclass
class Collected:
    """An episode.

    Attributes:
        env: index of the environment.
        observations: texts, the last one included: one more than there are actions.
        actions: texts.
        rewards: one per action.
        terminated: whether the task ended; else a limit or a failure ended the episode.
        error: why the environment failed; None if it did not.
    """

    env: int
    observations: list[str]
    actions: list[str] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    error: str | None = None


def collect(
    vec: VectorEnv,
    act: Callable[[list[int], list[str]], Sequence[str]],
    episodes: int,
    seed: int | None = None,
    progress: bool = True,
) -> list[Collected]:
    r"""Run episodes. Each that is started is run to its end, so that short ones are not preferred.

    Args:
        vec: whose autoreset mode is ``SAME_STEP``; all of it is reset.
        act: gets the indices of the environments that wait, and their observations; returns an action each.
        episodes: how many to run.
        seed: of the reset.
        progress: show a bar on the terminal, if stderr is one.

    Returns:
        The episodes, in the order in which they ended.

    Raises:
        ValueError: the autoreset mode is another.
        CrashLoop: an environment fails again and again.

    >>> import gem
    >>> with gem.make_vec(["game:GuessTheNumber-v0-easy"] * 2, backend="thread") as vec:
    ...     played = collect(vec, lambda indices, observations: ["\\boxed{5}"] * len(indices), episodes=3, seed=1)
    >>> [sum(episode.rewards) > 0 for episode in played]
    [True, True, True]
    """
    if vec.autoreset_mode is not AutoresetMode.SAME_STEP:
        raise ValueError(f"collect needs the autoreset mode SAME_STEP, not {vec.autoreset_mode.name}")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn())
    bar = Progress("Collecting", *columns, console=console, disable=not (progress and console.is_terminal))
    with bar:
        shown = bar.add_task("", total=episodes, shown="")
        return _collect(vec, act, episodes, seed, lambda text: bar.update(shown, advance=1, shown=text))


def _collect(
    vec: VectorEnv,
    act: Callable[[list[int], list[str]], Sequence[str]],
    episodes: int,
    seed: int | None,
    ended: Callable[[str], object],
) -> list[Collected]:
    done: list[Collected] = []
    waiting = list(range(min(episodes, vec.num_envs)))
    observations, _ = vec.reset(seed=seed, only=waiting)
    running = {index: Collected(index, [text]) for index, text in zip(waiting, observations, strict=True)}
    begun, steps, faults = len(waiting), 0, 0
    while running:
        if waiting:
            actions = dict(zip(waiting, act(waiting, [running[i].observations[-1] for i in waiting]), strict=True))
            for index, action in actions.items():
                running[index].actions.append(action)
            vec.send(actions)
        ready = vec.recv()
        steps += len(ready.indices)
        waiting = []
        for index, text, reward, terminated, truncated, info in zip(*ready, strict=True):
            episode = running[index]
            episode.rewards.append(float(reward))
            if not (terminated or truncated):
                episode.observations.append(text)
                waiting.append(index)
                continue
            episode.observations.append(info["final_obs"])
            episode.terminated = bool(terminated)
            episode.error = info.get("error") if truncated else None
            faults += episode.error is not None
            done.append(episode)
            ended(f"{steps} steps, {faults} failures")
            del running[index]
            if begun < episodes:
                begun += 1
                running[index] = Collected(index, [text])
                waiting.append(index)
    return done
