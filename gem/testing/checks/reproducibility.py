"""Does the same seed give the same episode, wherever it runs?"""

from __future__ import annotations

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gem.testing.checks.base import (
    CALL_SUPER_RESET,
    USE_RNG,
    Subject,
    check,
    fail,
    require,
    require_replays,
    require_same,
)
from gem.testing.recording import (
    as_line,
    play,
    random_actions,
    replay,
    replay_all,
    replay_in_processes,
)
from gem.workers import CallNotSent

THREADS = 8


@check("The same seed and actions give the same episode in a new instance.")
def _same_seed(subject: Subject) -> None:
    replays = replay_all(subject.make, subject.recordings)
    require_replays(subject.recordings, replays, "played again", USE_RNG)


@check("A used instance, its episode over or not, plays every seed as a new instance does.")
def _reset_again(subject: Subject) -> None:
    with subject.make() as env:
        for recording in [*reversed(subject.few), *subject.few]:
            advice = "Set every attribute of the episode in reset"
            require_replays([recording], [replay(env, recording)], "after another episode", advice)
            env.reset(seed=recording.seed)
            play(env, recording.actions[: len(recording.actions) // 2])


@check("After a seeded ``reset``, resets without a seed give a sequence that the seed fixes.")
def _unseeded_reset(subject: Subject) -> None:
    for seed in subject.seeds[:3]:
        sequences = []
        for _ in range(2):
            with subject.make() as env:
                sequences.append([as_line(env.reset(seed=s)) for s in (seed, None, None, None)])
        require_same(sequences[0], sequences[1], f"reset() after reset(seed={seed})", USE_RNG)


@check("Any kind of integer is a seed; other types raise TypeError, negative numbers ValueError.")
def _seed_type(subject: Subject) -> None:
    import numpy as np

    recording = subject.recordings[0]
    with subject.make() as env:
        lines = [as_line(env.reset(seed=np.int64(recording.seed)))]
        require_same(recording.lines[:1], lines, "with a numpy integer as seed", CALL_SUPER_RESET)
        seeds: dict[Any, type[Exception]] = {"0": TypeError, 0.5: TypeError, True: TypeError, -1: ValueError}
        for seed, expected in seeds.items():
            try:
                env.reset(seed=seed)
            except expected:
                continue
            fail(f"reset(seed={seed!r}) raised no {expected.__name__}", CALL_SUPER_RESET)


@check("Environments in several threads at once play as they do alone.")
def _threads(subject: Subject) -> None:
    barrier = threading.Barrier(THREADS)

    def replay_with_others(index: int) -> None:
        shift = index % len(subject.few)
        recordings = subject.few[shift:] + subject.few[:shift]
        barrier.wait()
        replays = replay_all(subject.make, recordings)
        require_replays(recordings, replays, f"in one of {THREADS} threads", USE_RNG)

    _ = subject.recordings  # to be made alone
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns often, so that what they share shows
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(replay_with_others, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)


@check("Another process, in which strings hash otherwise, plays the same episodes.")
def _processes(subject: Subject) -> None:
    try:
        processes = replay_in_processes(subject.make, subject.few)
    except CallNotSent:
        seen = "neither the factory nor the environment can be sent to another process"
        fail(seen, "Define both at the top level of a module that can be imported")
    advice = "Do not depend on the order of a set, hash(), id() or the process: sort, and draw from self.rng"
    for replays in processes:
        require_replays(subject.few, replays, "in another process", advice)


@check("Global random generators (``random``, ``numpy.random``) are neither read nor written.")
def _global_random_state(subject: Subject) -> None:
    import numpy as np

    def state() -> tuple[Any, ...]:
        return random.getstate(), [np.asarray(part).tolist() for part in np.random.get_state()]

    saved = random.getstate(), np.random.get_state()
    try:
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)
            before = state()
            with subject.make() as env:
                random_actions(env, subject.seeds[0])
            replays = replay_all(subject.make, subject.few)
            require_replays(subject.few, replays, "after random.seed() and numpy.random.seed()", USE_RNG)
            require(state() == before, "the state of random or numpy.random changed", USE_RNG)
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
