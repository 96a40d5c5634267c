"""Can an episode be saved, copied and continued?"""

from __future__ import annotations

import json
import pickle

from gem.testing.checks.base import (
    SAVE_ALL,
    Subject,
    check,
    describe_error,
    fail,
    needs_reset,
    require,
    require_same,
)
from gem.testing.recording import (
    as_line,
    play,
    random_action,
    replay,
)


@check("``set_state(get_state())``, by way of JSON, goes on with the episode in any instance, new or used.")
def _state(subject: Subject) -> None:
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
                    require_same(lines, play(other, future), where, SAVE_ALL)


@check("An episode that has ended is still over when its state is restored.")
def _state_of_the_end(subject: Subject) -> None:
    for recording in subject.few:
        if recording.turns[-1].ended:
            with subject.make() as env, subject.make() as other:
                replay(env, recording)
                other.set_state(json.loads(json.dumps(env.get_state())))
                over = needs_reset(other) or not needs_reset(env)
                require(over, "an episode that had ended could be stepped after set_state", SAVE_ALL)


@check("``get_state`` changes nothing, and what it returned does not change as the episode goes on.")
def _get_state(subject: Subject) -> None:
    for recording in subject.few:
        with subject.make() as env:
            lines = [as_line(env.reset(seed=recording.seed))]
            for action in recording.actions:
                state = env.get_state()
                before = json.dumps(state)
                lines += play(env, [action])
                require(json.dumps(state) == before, "step changed an earlier get_state()", "Return a copy")
            where = "with get_state() before each turn"
            require_same(recording.lines, lines, where, "Only read in get_state")


@check("``spawn()`` is as new, ``spawn(same_state=True)`` goes on as the original; none disturbs another.")
def _spawn(subject: Subject) -> None:
    recording = max(subject.few, key=lambda r: len(r.turns))
    middle = len(recording.turns) // 2
    with subject.make() as env:
        env.reset(seed=recording.seed)
        play(env, recording.actions[:middle])
        with env.spawn() as new, env.spawn(same_state=True) as copy, subject.make() as other:
            advice = "Build another instance in spawn, from the constructor's arguments, and share no data"
            as_new = new.get_state() == other.get_state()
            require(as_new, "spawn() is not in the state of a new environment", advice)
            require_same(recording.lines, replay(new, recording), "in spawn()", advice)
            lines = play(copy, recording.actions[middle:])
        where = "in the original, after spawn(same_state=True) went on from the same turn"
        require_same(lines, play(env, recording.actions[middle:]), where, advice)


@check("Pickled and loaded in the middle of an episode, the environment goes on with it.")
def _pickle(subject: Subject) -> None:
    recording = max(subject.few, key=lambda r: len(r.turns))
    middle = len(recording.turns) // 2
    advice = "Define the class at the top level of a module, and keep no lambda, lock, thread or file in it"
    with subject.make() as env:
        env.reset(seed=recording.seed)
        play(env, recording.actions[:middle])
        try:
            copy = pickle.loads(pickle.dumps(env))
        except Exception as error:  # noqa: BLE001 (an object's own __reduce__ may raise anything)
            fail(describe_error(error), advice)
        with copy:
            rest = play(copy, recording.actions[middle:])
            require_same(play(env, recording.actions[middle:]), rest, "after pickling", advice)
