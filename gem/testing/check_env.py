"""Does an environment keep the contract of :mod:`gem.core`? ``check_env`` says where it does not.

>>> from gem.testing import check_env
>>> len(check_env("game:GuessTheNumber-v0-easy")) > 20
True

Each check is a function of a :class:`Subject` that raises :class:`CheckFailed` or returns a note; a new one goes into
:data:`CHECKS`. A check builds the environments that it plays, and compares an episode with itself
wherever it can, so that one fault in an environment fails as few checks as possible.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import numbers
import pickle
import queue
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NoReturn

from gem.core import Env, ResetNeeded
from gem.envs.registration import EnvSpec, find_spec, make, register_if_unknown
from gem.faults import error_message, error_text, is_from_user
from gem.testing.constant_answers import GUESSES, HEDGES, PARTIAL, answer_of, as_action, bound, combined, repeated
from gem.testing.hostile_text import JUNK, ODD, mutations
from gem.testing.recording import (
    MAX_TURNS,
    Recording,
    Turn,
    as_line,
    play,
    random_action,
    random_actions,
    record,
    replay,
    replay_all,
    replay_in_processes,
)
from gem.testing.solvers import WIN_SHARES, Solver, SolverResult, find_solver, solve
from gem.workers import CallNotSent

STEP_SECONDS = 10.0
"""The time a step may take on text of any kind, on a machine that does other things too."""

EPISODES = 200
"""Episodes of random play."""

PLAY_SECONDS = 5.0
"""Time for random play, after which there are fewer of them."""

SOLVED = 10
"""Episodes that a solver plays, unless they take longer than :data:`PLAY_SECONDS`."""

CONSTANT_SECONDS = 1.0
"""Time for constant answers, half of it for asking the questions; a slow environment gets fewer questions."""

QUESTIONS = 100
"""Questions that constant answers are given to."""

THREADS = 8
ENDLESS = 1_000
"""Turns after which an episode is taken to have no end."""


class CheckFailed(AssertionError):
    """What an environment does, against the contract: one line per check."""


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


@dataclass(frozen=True)
class RandomPlay:
    """Episodes of random actions.

    Attributes:
        rewards: of each episode.
        error: what a further episode raised.
    """

    rewards: list[list[Any]]
    error: Exception | None


@dataclass(frozen=True)
class Subject:
    """The environment under test.

    Attributes:
        make: builds it.
        seeds: of the episodes to play.
        solver: plays it well; None if there is none.
        win_share: share of its episodes that the solver is to win.
    """

    make: Callable[[], Env]
    seeds: tuple[int, ...]
    solver: Solver | None = None
    win_share: float = 1.0

    @cached_property
    def recordings(self) -> list[Recording]:
        """One episode per seed."""
        return [record(self.make, seed) for seed in self.seeds]

    @cached_property
    def random_play(self) -> RandomPlay:
        """Up to :data:`EPISODES` episodes, as many as there is time for."""
        end = time.monotonic() + PLAY_SECONDS
        episodes: list[list[Any]] = []
        try:
            with self.make() as env:
                for seed in range(EPISODES):
                    if time.monotonic() > end:
                        break
                    env.reset(seed=seed)
                    episodes.append([turn.reward for turn in _random_turns(env)])
        except Exception as error:  # noqa: BLE001 (whatever the environment raises is the finding)
            return RandomPlay(episodes, error)
        return RandomPlay(episodes, None)

    @property
    def few(self) -> list[Recording]:
        """Episodes for checks that play each of them many times."""
        return self.recordings[:3]


def check_env(
    make_env: Callable[[], Env] | str, seeds: Sequence[int] = range(6), solver: Solver | None = None
) -> list[str]:
    """Run every check.

    Args:
        make_env: an id, or a function without arguments that builds the environment. Other processes
            must be able to import it, to be tested with strings that hash otherwise.
        seeds: of the episodes to play.
        solver: a scripted player (see :mod:`gem.testing.solvers`) that is to win; by default the one that
            this package has for the id, if there is one.

    Returns:
        The names of the checks that the environment passed: all of them.

    Raises:
        CheckFailed: the environment fails; one line per check.
        ValueError: there is no environment of this id.
    """
    results = list(run_checks(make_env, seeds, solver))
    errors = [str(result.error) for result in results if result.error]
    if errors:
        raise CheckFailed("\n".join(errors))
    return [result.name for result in results]


def run_checks(
    make_env: Callable[[], Env] | str, seeds: Sequence[int] = range(6), solver: Solver | None = None
) -> Iterator[CheckResult]:
    """Run every check and yield each result as it comes; arguments and errors as in :func:`check_env`.

    An environment that cannot be built, reset or stepped at all is spared the checks that follow.
    """
    if isinstance(make_env, str):
        build: Callable[[], Env] = partial(_make_registered, find_spec(make_env))
        subject = Subject(build, tuple(seeds), solver or find_solver(make_env), WIN_SHARES.get(make_env, 1.0))
    else:
        subject = Subject(make_env, tuple(seeds), solver)
    for check in CHECKS:
        result = _run(check, subject)
        yield result
        if result.error and check in _PREREQUISITES:
            return


def _run(check: Callable[[Subject], str | None], subject: Subject) -> CheckResult:
    name = check.__name__.removeprefix("_check_")
    try:
        note = check(subject)
    except CheckFailed as failure:
        found = str(failure)
    except BaseException as error:
        if is_from_user(error):
            raise
        found = f"{_raised(error)}. {check.__doc__}"
    else:
        return CheckResult(name, None, note or "")
    return CheckResult(name, CheckFailed(f"{name}: {' '.join(found.split())}"))


def _make_registered(spec: EnvSpec) -> Env:
    """Build the environment of an id, also in a process where nobody has registered it."""
    register_if_unknown(spec)
    return make(spec.id)


def _fail(seen: str, advice: str) -> NoReturn:
    raise CheckFailed(f"{seen}. {advice}.")


def _require(holds: bool, seen: str, advice: str) -> None:
    if not holds:
        _fail(seen, advice)


def _require_same(then: Sequence[str], now: Sequence[str], where: str, advice: str) -> None:
    for index, (a, b) in enumerate(itertools.zip_longest(then, now, fillvalue="(nothing)")):
        if a != b:
            _fail(f"{where}, result {index} was {_excerpt(a, b)} and is now {_excerpt(b, a)}", advice)


def _excerpt(text: str, other: str) -> str:
    """Return ``text`` around the first character in which it differs from ``other``."""
    pairs = zip(text, other, strict=False)
    first = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = max(0, first - 30)
    return f"{'...' * (start > 0)}{text[start : first + 50]}{'...' * (first + 50 < len(text))}"


def _random_turns(env: Env) -> Iterator[Turn]:
    for _ in range(ENDLESS):
        turn = Turn(*env.step(random_action(env)))
        yield turn
        if turn.ended:
            return


def _raised(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {error_text(error)[:200]} ({frame.filename}:{frame.lineno})"


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _require_replays(
    recordings: Sequence[Recording], replays: Sequence[Sequence[str]], where: str, advice: str
) -> None:
    for recording, lines in zip(recordings, replays, strict=True):
        _require_same(recording.lines, lines, f"{where}, seed {recording.seed}", advice)


_USE_RNG = "Draw everything from self.rng, which super().reset(seed) makes; keep no state outside of it"
_CHECK_SEED = "Call super().reset(seed) first"
_NEEDS_RESET = "Raise gem.ResetNeeded in it"
_SAVE_ALL = (
    "Keep what changes in public attributes that are JSON data (a wrapper names them in state_attributes), or "
    "override get_state and set_state"
)


def _check_make(subject: Subject) -> None:
    """The factory builds a gem.Env."""
    with contextlib.closing(subject.make()) as env:
        _require(isinstance(env, Env), f"it built a {type(env).__name__}", "Derive the class from gem.Env")


def _check_interface(subject: Subject) -> None:
    """``reset`` returns (observation, info); ``step`` (observation, reward, terminated, truncated, info)."""
    with subject.make() as env:
        for name, result, size in (
            ("reset", env.reset(seed=subject.seeds[0]), 2),
            ("step", env.step(random_action(env)), 5),
        ):
            fits = isinstance(result, tuple) and len(result) == size
            _require(fits, f"{name} returned {result!r:.100}", f"Return a tuple of {size}")


def _check_types(subject: Subject) -> None:
    """Observations are text, rewards finite, ``terminated`` and ``truncated`` bools and never both true."""
    for recording in subject.recordings:
        observations = [recording.start[0], *(turn.observation for turn in recording.turns)]
        infos = [recording.start[1], *(turn.info for turn in recording.turns)]
        for observation, info in zip(observations, infos, strict=True):
            _require(isinstance(observation, str), f"an observation is {observation!r:.80}", "Return a str")
            _require(isinstance(info, dict), f"an info is {info!r:.80}", "Return a dict")
        for turn in recording.turns:
            _require(_is_number(turn.reward), f"a reward is {turn.reward!r:.80}", "Return a finite float")
            for end in (turn.terminated, turn.truncated):
                _require(isinstance(end, bool), f"terminated or truncated is {end!r:.80}", "Return a bool")
            both = turn.terminated and turn.truncated
            _require(not both, "terminated and truncated are both true", "Let truncated yield to terminated")


def _check_info(subject: Subject) -> None:
    """``info`` is JSON data, the same after a round trip, and does not change once it is returned."""
    for recording in subject.recordings:
        for result, line in zip([recording.start, *recording.turns], recording.lines, strict=True):
            info = result[-1]
            try:
                same = json.loads(json.dumps(info)) == info
            except (TypeError, ValueError):
                same = False
            advice = "Put only dicts with text keys, lists, text, finite numbers, bools and None into info"
            _require(same, f"info does not survive JSON: {info!r:.200}", advice)
            advice = "Return a new dict each time, with copies in it"
            _require(as_line(result) == line, f"an info changed once returned: {info!r:.200}", advice)


def _check_unknown_argument(subject: Subject) -> None:
    """A constructor argument that does not exist raises TypeError."""
    unknown = {"no_such_argument": 1}
    with subject.make() as env:
        builders: list[Callable[..., Env]] = [env.spawn]
        if env.env_id is not None:
            builders.append(partial(make, env.env_id))
        for build in builders:
            with contextlib.suppress(TypeError):
                build(**unknown).close()
                _fail("the constructor took no_such_argument=1", "Do not swallow **kwargs")


def _check_same_seed(subject: Subject) -> None:
    """The same seed and actions give the same episode in a new instance."""
    replays = replay_all(subject.make, subject.recordings)
    _require_replays(subject.recordings, replays, "played again", _USE_RNG)


def _check_reset_again(subject: Subject) -> None:
    """A used instance, its episode over or not, plays every seed as a new instance does."""
    with subject.make() as env:
        for recording in [*reversed(subject.few), *subject.few]:
            advice = "Set every attribute of the episode in reset"
            _require_replays([recording], [replay(env, recording)], "after another episode", advice)
            env.reset(seed=recording.seed)
            play(env, recording.actions[: len(recording.actions) // 2])


def _check_unseeded_reset(subject: Subject) -> None:
    """After a seeded ``reset``, resets without a seed give a sequence that the seed fixes."""
    for seed in subject.seeds[:3]:
        sequences = []
        for _ in range(2):
            with subject.make() as env:
                sequences.append([as_line(env.reset(seed=s)) for s in (seed, None, None)])
        _require_same(sequences[0], sequences[1], f"reset() after reset(seed={seed})", _USE_RNG)


def _check_seed_type(subject: Subject) -> None:
    """Any kind of integer is a seed; other types raise TypeError, negative numbers ValueError."""
    import numpy as np

    recording = subject.recordings[0]
    with subject.make() as env:
        lines = [as_line(env.reset(seed=np.int64(recording.seed)))]
        _require_same(recording.lines[:1], lines, "with a numpy integer as seed", _CHECK_SEED)
        seeds: dict[Any, type[Exception]] = {"0": TypeError, 0.5: TypeError, True: TypeError, -1: ValueError}
        for seed, expected in seeds.items():
            try:
                env.reset(seed=seed)
            except expected:
                continue
            _fail(f"reset(seed={seed!r}) raised no {expected.__name__}", _CHECK_SEED)


def _check_threads(subject: Subject) -> None:
    """Environments in several threads at once play as they do alone."""
    barrier = threading.Barrier(THREADS)

    def replay_with_others(index: int) -> None:
        shift = index % len(subject.few)
        recordings = subject.few[shift:] + subject.few[:shift]
        barrier.wait()
        replays = replay_all(subject.make, recordings)
        _require_replays(recordings, replays, f"in one of {THREADS} threads", _USE_RNG)

    _ = subject.recordings  # to be made alone
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns often, so that what they share shows
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(replay_with_others, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)


def _check_processes(subject: Subject) -> None:
    """Another process, in which strings hash otherwise, plays the same episodes."""
    try:
        processes = replay_in_processes(subject.make, subject.few)
    except CallNotSent:
        seen = "neither the factory nor the environment can be sent to another process"
        _fail(seen, "Define both at the top level of a module that can be imported")
    advice = "Do not depend on the order of a set, hash(), id() or the process: sort, and draw from self.rng"
    for replays in processes:
        _require_replays(subject.few, replays, "in another process", advice)


def _check_global_random_state(subject: Subject) -> None:
    """Global random generators (``random``, ``numpy.random``) are neither read nor written."""
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
            _require_replays(subject.few, replays, "after random.seed() and numpy.random.seed()", _USE_RNG)
            _require(state() == before, "the state of random or numpy.random changed", _USE_RNG)
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])


def _check_state(subject: Subject) -> None:
    """``set_state(get_state())``, by way of JSON, goes on with the episode in any instance, new or used."""
    for recording in subject.few:
        for turn in (0, len(recording.turns) // 2):
            past, future = recording.actions[:turn], recording.actions[turn:]
            with subject.make() as env, subject.make() as new, subject.make() as used:
                used.reset(seed=recording.seed + 1)
                play(used, [random_action(used)])
                env.reset(seed=recording.seed)
                play(env, past)
                state = json.dumps(env.get_state())
                lines = play(env, future)
                for other, which in ((new, "a new"), (used, "a used")):
                    other.set_state(json.loads(state))
                    where = f"restored before turn {turn + 1} in {which} instance"
                    _require_same(lines, play(other, future), where, _SAVE_ALL)


def _check_state_of_the_end(subject: Subject) -> None:
    """An episode that has ended is still over when its state is restored."""
    for recording in subject.few:
        if recording.turns[-1].ended:
            with subject.make() as env, subject.make() as other:
                replay(env, recording)
                other.set_state(json.loads(json.dumps(env.get_state())))
                over = _needs_reset(other) or not _needs_reset(env)
                _require(over, "an episode that had ended could be stepped after set_state", _SAVE_ALL)


def _check_get_state(subject: Subject) -> None:
    """``get_state`` changes nothing, and what it returned does not change as the episode goes on."""
    for recording in subject.few:
        with subject.make() as env:
            lines = [as_line(env.reset(seed=recording.seed))]
            for action in recording.actions:
                state = env.get_state()
                before = json.dumps(state)
                lines += play(env, [action])
                _require(json.dumps(state) == before, "step changed an earlier get_state()", "Return a copy")
            where = "with get_state() before each turn"
            _require_same(recording.lines, lines, where, "Only read in get_state")


def _check_spawn(subject: Subject) -> None:
    """``spawn()`` is as new, ``spawn(same_state=True)`` goes on as the original; none disturbs another."""
    recording = max(subject.few, key=lambda r: len(r.turns))
    middle = len(recording.turns) // 2
    with subject.make() as env:
        env.reset(seed=recording.seed)
        play(env, recording.actions[:middle])
        with env.spawn() as new, env.spawn(same_state=True) as copy, subject.make() as other:
            advice = "Build another instance in spawn, from the constructor's arguments, and share no data"
            as_new = new.get_state() == other.get_state()
            _require(as_new, "spawn() is not in the state of a new environment", advice)
            _require_same(recording.lines, replay(new, recording), "in spawn()", advice)
            lines = play(copy, recording.actions[middle:])
        where = "in the original, after spawn(same_state=True) went on from the same turn"
        _require_same(lines, play(env, recording.actions[middle:]), where, advice)


def _check_pickle(subject: Subject) -> None:
    """Pickled and loaded in the middle of an episode, the environment goes on with it."""
    recording = max(subject.few, key=lambda r: len(r.turns))
    middle = len(recording.turns) // 2
    advice = "Define the class at the top level of a module, and keep no lambda, lock, thread or file in it"
    with subject.make() as env:
        env.reset(seed=recording.seed)
        play(env, recording.actions[:middle])
        try:
            copy = pickle.loads(pickle.dumps(env))
        except Exception as error:  # noqa: BLE001 (an object's own __reduce__ may raise anything)
            _fail(_raised(error), advice)
        with copy:
            rest = play(copy, recording.actions[middle:])
            _require_same(play(env, recording.actions[middle:]), rest, "after pickling", advice)


def _check_random_actions(subject: Subject) -> None:
    """``sample_random_action`` returns text that is a legal move, in every state of an episode."""
    for seed in subject.seeds:
        with subject.make() as env:
            env.reset(seed=seed)
            for _ in range(MAX_TURNS):
                try:
                    action = env.sample_random_action()
                except NotImplementedError as error:
                    _fail(error_message(error), "Write sample_random_action")
                _require(isinstance(action, str), f"it returned {action!r:.80}", "Return a str")
                turn = Turn(*env.step(action))
                move = turn.info.get("move")
                legal = move not in ("illegal", "unparseable")
                _require(legal, f"{action!r:.80} is {move}", "Sample from the legal moves only")
                if turn.ended:
                    break


def _check_sampling(subject: Subject) -> None:
    """``sample_random_action`` leaves the episode as it is."""
    for recording in subject.few:
        with subject.make() as env:
            lines = [as_line(env.reset(seed=recording.seed))]
            for action in recording.actions:
                for _ in range(3):
                    random_action(env)
                lines += play(env, [action])
        where = "with actions sampled at each turn"
        _require_same(recording.lines, lines, where, "Draw them from self.action_rng")


def _check_max_turns(subject: Subject) -> None:
    """An episode ends within ``max_turns``, also if the agent says the same again and again."""
    for seed in subject.seeds[:3]:
        for stubborn in (False, True):
            with subject.make() as env:
                env.reset(seed=seed)
                limit = env.max_turns
                if limit is None:
                    continue
                whole = isinstance(limit, int) and limit >= 1
                _require(whole, f"max_turns is {limit!r}", "Make it a positive int, or None")
                action = random_action(env)
                for turn in itertools.count(1):
                    if Turn(*env.step(action)).ended:
                        break
                    _require(turn < limit, f"{limit} turns did not end the episode", "Count every step")
                    action = action if stubborn else random_action(env)


def _check_hostile_text(subject: Subject) -> None:
    """Any text whatsoever gives an observation and a reward, within seconds."""
    complaints = []
    with subject.make() as env:
        env.reset(seed=subject.seeds[0])
        texts = {**JUNK, **ODD, **mutations(random_action(env))}
        for name, text in texts.items():
            turn, complaint = _step_in_time(env, text)
            if complaint:
                complaints.append(f"{name}: {complaint}")
            if turn is None or turn.ended:
                env.reset(seed=subject.seeds[0])
    advice = "Take any text: bound what you parse, answer what you cannot parse with a reward"
    _require(not complaints, "; ".join(complaints), advice)


def _step_in_time(env: Env, text: str) -> tuple[Turn | None, str]:
    """Step in a thread of its own, so that a step which hangs is reported and not waited for."""
    results: queue.SimpleQueue[Turn | BaseException] = queue.SimpleQueue()

    def step() -> None:
        try:
            results.put(Turn(*env.step(text)))
        except BaseException as error:  # noqa: BLE001 (code in the text may call sys.exit)
            results.put(error)

    begin = time.perf_counter()
    threading.Thread(target=step, daemon=True).start()
    try:
        result = results.get(timeout=STEP_SECONDS * 3)
    except queue.Empty:
        raise CheckFailed(f"step({text[:60]!r}) hangs. Bound what it computes.") from None
    seconds = time.perf_counter() - begin
    if isinstance(result, BaseException):
        return None, _raised(result)
    if not isinstance(result.observation, str) or not _is_number(result.reward):
        return result, f"observation {result.observation!r:.60}, reward {result.reward!r:.60}"
    return result, f"took {seconds:.1f} s" if seconds > STEP_SECONDS else ""


def _check_junk(subject: Subject) -> None:
    """Text that is no answer to anything is never paid."""
    paid = []
    with subject.make() as env:
        for seed, (name, text) in zip(itertools.cycle(subject.seeds), JUNK.items()):
            env.reset(seed=seed)
            turn = Turn(*env.step(text))
            if _is_number(turn.reward) and turn.reward > 0:
                paid.append(f"{name}: {turn.reward}")
    _require(not paid, "; ".join(paid), "Pay only for what answers the task")


def _check_constant_answers(subject: Subject) -> str:
    """An answer given without reading the question earns what guessing does (:mod:`gem.testing.constant_answers`)."""
    with subject.make() as env:
        if env.max_turns != 1:  # of a game, only what names no move
            return _try_hedges(env, subject.seeds[0])
        end = time.monotonic() + CONSTANT_SECONDS
        references = _references(env, end - CONSTANT_SECONDS / 2)
        common = [text for text, _ in Counter(filter(None, references)).most_common(3)]
        earned: dict[str, list[float]] = {text: [] for text in (*GUESSES, *common)}
        for seed, reference in enumerate(references):
            if seed and time.monotonic() > end:
                break
            for text, rewards in earned.items():
                rewards.append(_reward(env, seed, text))
            other = next((each for each in references if each and each != reference), None)
            both = combined(reference, other) if reference and other else []
            _require_no_reward(env, seed, [*HEDGES, repeated(env.reset(seed=seed)[0]), *both], reference or "")
        high = env.reward_range[1]
    for text, rewards in earned.items():
        _require_no_more_than_guessing(text, rewards, high, references)
    return f"{len(earned)} texts, {len(rewards)} questions"


def _require_no_more_than_guessing(
    text: str, rewards: Sequence[float], high: float, references: Sequence[str | None]
) -> None:
    asked = len(rewards)
    right = sum(reward >= high for reward in rewards)
    partial = sum(reward for reward in rewards if reward < high)
    limit = bound(references[:asked])
    seen = f"{text[:60]!r} is right for {right} of {asked} questions; guessing explains {limit:.0%}"
    _require(right <= limit * asked, seen, "Do not pay for what is not the answer")
    seen = f"{text[:60]!r}, wrong, earns {partial:.2f} for {asked} questions"
    _require(partial <= PARTIAL * max(asked, 10), seen, "Pay no partial credit for what a constant has, too")


def _try_hedges(env: Env, seed: int) -> str:
    _require_no_reward(env, seed, HEDGES, "")
    return f"{len(HEDGES)} texts, the first turn only"


def _references(env: Env, end: float) -> list[str | None]:
    """Return the right answer to each of the questions that there is time for, None where it is not known."""
    answers: list[str | None] = []
    while len(answers) < QUESTIONS and (not answers or time.monotonic() < end):
        env.reset(seed=len(answers))
        answers.append(None)
        with contextlib.suppress(AttributeError, NotImplementedError):
            answers[-1] = answer_of(env.reference_action())  # type: ignore[attr-defined]
    return answers


def _reward(env: Env, seed: int, text: str) -> float:
    env.reset(seed=seed)
    reward = Turn(*env.step(as_action(text))).reward
    return float(reward) if _is_number(reward) else 0.0


def _require_no_reward(env: Env, seed: int, texts: Sequence[str], reference: str) -> None:
    for text in texts:
        reward = 0.0 if text == reference else _reward(env, seed, text)
        _require(reward <= 0, f"seed {seed}: {text[:80]!r} earned {reward}", "Pay for one answer, and for nothing else")


def _check_reward_range(subject: Subject) -> None:
    """Rewards, and their sum over an episode, lie within ``reward_range``."""
    with subject.make() as env:
        episodes = list(subject.random_play.rewards)
        for seed in subject.seeds:
            env.reset(seed=seed)
            episodes.append([Turn(*env.step("")).reward])
        low, high = env.reward_range
    _require(low <= high, f"reward_range is {low, high}", "Put the lower bound first")
    for episode in episodes:
        rewards = [reward for reward in episode if _is_number(reward)]
        for value in (*rewards, sum(rewards)):
            within = low - 1e-9 <= value <= high + 1e-9
            seen = f"a reward or return of {value} is not within {low} to {high}"
            _require(within, seen, "Correct the reward, or reward_range")


def _check_random_play(subject: Subject) -> str:
    """Hundreds of episodes of random actions raise nothing."""
    play = subject.random_play
    if play.error is not None:
        raise play.error
    played = len(play.rewards)
    return f"{played} episodes" + (f", all that {PLAY_SECONDS:.0f} s had room for" if played < EPISODES else "")


def _check_solver(subject: Subject) -> str:
    """A scripted player wins through the text alone, and a win pays the highest return."""
    if subject.solver is None:
        return "there is no solver"
    end = time.monotonic() + PLAY_SECONDS
    results: list[SolverResult] = []
    with subject.make() as env:
        high = env.reward_range[1]
        while len(results) < SOLVED and (not results or time.monotonic() < end):
            results.append(solve(env, len(results), subject.solver))
    for seed, result in enumerate(results):
        paid = not result.success or math.isclose(result.return_, high)
        _require(paid, f"the win of seed {seed} returned {result.return_}, not {high}", "Pay a win in full")
    wins = sum(result.success for result in results)
    expected = subject.win_share if subject.win_share == 1.0 else subject.win_share / 2  # few are played
    seen = f"the solver won {wins} of {len(results)}, where {subject.win_share:.0%} were expected"
    _require(wins >= int(expected * len(results)), seen, "Show all that the player needs to know")
    return f"won {wins} of {len(results)}"


def _check_reference(subject: Subject) -> str:
    """What the environment knows to be the right answer is graded as right, and pays the highest reward."""
    known = 0
    with subject.make() as env:
        reference = getattr(env, "reference_action", None)
        if reference is None:
            return "there is none"
        for seed in subject.seeds:
            env.reset(seed=seed)
            with contextlib.suppress(NotImplementedError):
                action = reference()
                known += 1
                turn = Turn(*env.step(action))
                right = turn.reward == env.reward_range[1] and turn.info.get("success", True)
                seen = f"seed {seed}: the reference {action[:80]!r} earned {turn.reward}"
                _require(right, seen, "Grade the reference as right")
    return f"known for {known} of {len(subject.seeds)}"


def _check_step_needs_reset(subject: Subject) -> None:
    """``step`` raises gem.ResetNeeded before the first ``reset``, and after an episode has ended."""
    with subject.make() as env:
        _require(_needs_reset(env), "a step before reset was taken", _NEEDS_RESET)
        env.reset(seed=subject.seeds[0])
        for turn in range(ENDLESS):
            if Turn(*env.step(random_action(env) if turn < ENDLESS // 2 else "")).ended:
                for _ in range(2):
                    _require(_needs_reset(env), "a step after the end was taken", _NEEDS_RESET)
                break


def _needs_reset(env: Env) -> bool:
    try:
        env.step("\\boxed{1}")
    except ResetNeeded:
        return True
    return False


def _check_close(subject: Subject) -> None:
    """``close`` may be called twice, before and after an episode; ``with`` gives the environment."""
    subject.make().close()
    env = subject.make()
    env.reset(seed=subject.seeds[0])
    env.close()
    env.close()
    with env as entered:
        _require(entered is env, "`with env as e` gave something else", "Return self from __enter__")


CHECKS: tuple[Callable[[Subject], str | None], ...] = (
    _check_make,
    _check_interface,
    _check_types,
    _check_info,
    _check_unknown_argument,
    _check_same_seed,
    _check_reset_again,
    _check_unseeded_reset,
    _check_seed_type,
    _check_threads,
    _check_processes,
    _check_global_random_state,
    _check_state,
    _check_state_of_the_end,
    _check_get_state,
    _check_spawn,
    _check_pickle,
    _check_random_actions,
    _check_sampling,
    _check_max_turns,
    _check_hostile_text,
    _check_junk,
    _check_constant_answers,
    _check_reward_range,
    _check_random_play,
    _check_solver,
    _check_reference,
    _check_step_needs_reset,
    _check_close,
)

_PREREQUISITES = (_check_make, _check_interface)
