"""Does any text give an observation and a reward, in time?"""

from __future__ import annotations

import queue
import threading
import time

from gem.core import Env
from gem.testing.checks.base import (
    CheckFailed,
    Subject,
    check,
    describe_error,
    is_number,
    require,
)
from gem.testing.hostile_text import JUNK, ODD, mutations
from gem.testing.recording import (
    Turn,
    random_action,
)

STEP_SECONDS = 10.0
"""The time a step may take on text of any kind, on a machine that does other things too."""


@check("Any text whatsoever gives an observation and a reward, within seconds.")
def _hostile_text(subject: Subject) -> None:
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
    require(not complaints, "; ".join(complaints), advice)


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
        return None, describe_error(result)
    if not isinstance(result.observation, str) or not is_number(result.reward):
        return result, f"observation {result.observation!r:.60}, reward {result.reward!r:.60}"
    return result, f"took {seconds:.1f} s" if seconds > STEP_SECONDS else ""
