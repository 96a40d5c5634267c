"""Is it an environment, and are its values of the right types?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial

from gem.core import Env
from gem.envs.registration import make as make_registered
from gem.testing.checks.base import (
    Subject,
    check,
    fail,
    is_number,
    require,
)
from gem.testing.recording import (
    as_line,
    random_action,
)


@check("The factory builds a gem.Env.", prerequisite=True)
def _make(subject: Subject) -> None:
    with contextlib.closing(subject.make()) as env:
        require(isinstance(env, Env), f"it built a {type(env).__name__}", "Derive the class from gem.Env")


@check(
    "``reset`` returns (observation, info); ``step`` (observation, reward, terminated, truncated, info).",
    prerequisite=True,
)
def _interface(subject: Subject) -> None:
    with subject.make() as env:
        for name, result, size in (
            ("reset", env.reset(seed=subject.seeds[0]), 2),
            ("step", env.step(random_action(env)), 5),
        ):
            fits = isinstance(result, tuple) and len(result) == size
            require(fits, f"{name} returned {result!r:.100}", f"Return a tuple of {size}")


@check("Observations are text, rewards finite, ``terminated`` and ``truncated`` bools and never both true.")
def _types(subject: Subject) -> None:
    for recording in subject.recordings:
        observations = [recording.start[0], *(turn.observation for turn in recording.turns)]
        infos = [recording.start[1], *(turn.info for turn in recording.turns)]
        for observation, info in zip(observations, infos, strict=True):
            require(isinstance(observation, str), f"an observation is {observation!r:.80}", "Return a str")
            require(isinstance(info, dict), f"an info is {info!r:.80}", "Return a dict")
        for turn in recording.turns:
            require(is_number(turn.reward), f"a reward is {turn.reward!r:.80}", "Return a finite float")
            for end in (turn.terminated, turn.truncated):
                require(isinstance(end, bool), f"terminated or truncated is {end!r:.80}", "Return a bool")
            both = turn.terminated and turn.truncated
            require(not both, "terminated and truncated are both true", "Let truncated yield to terminated")


@check("``info`` is JSON data, the same after a round trip, and does not change once it is returned.")
def _info(subject: Subject) -> None:
    for recording in subject.recordings:
        for result, line in zip([recording.start, *recording.turns], recording.lines, strict=True):
            info = result[-1]
            try:
                same = json.loads(json.dumps(info)) == info
            except (TypeError, ValueError):
                same = False
            advice = "Put only dicts with text keys, lists, text, finite numbers, bools and None into info"
            require(same, f"info does not survive JSON: {info!r:.200}", advice)
            advice = "Return a new dict each time, with copies in it"
            require(as_line(result) == line, f"an info changed once returned: {info!r:.200}", advice)


@check("A constructor argument that does not exist raises TypeError.")
def _unknown_argument(subject: Subject) -> None:
    unknown = {"no_such_argument": 1}
    with subject.make() as env:
        builders: list[Callable[..., Env]] = [env.spawn]
        if env.env_id is not None:
            builders.append(partial(make_registered, env.env_id))
        for build in builders:
            with contextlib.suppress(TypeError):
                build(**unknown).close()
                fail("the constructor took no_such_argument=1", "Do not swallow **kwargs")
