"""Do episodes start and end as they should?"""

from __future__ import annotations

import itertools

from gem.faults import error_message
from gem.testing.checks.base import (
    ENDLESS,
    RAISE_RESET_NEEDED,
    Subject,
    check,
    fail,
    needs_reset,
    require,
    require_same,
)
from gem.testing.recording import (
    MAX_TURNS,
    Turn,
    as_line,
    play,
    random_action,
)


@check("``sample_random_action`` returns text that is a legal move, in every state of an episode.")
def _random_actions(subject: Subject) -> None:
    for seed in subject.seeds:
        with subject.make() as env:
            env.reset(seed=seed)
            for _ in range(MAX_TURNS):
                try:
                    action = env.sample_random_action()
                except NotImplementedError as error:
                    fail(error_message(error), "Write sample_random_action")
                require(isinstance(action, str), f"it returned {action!r:.80}", "Return a str")
                turn = Turn(*env.step(action))
                move = turn.info.get("move")
                legal = move not in ("illegal", "unparseable")
                require(legal, f"{action!r:.80} is {move}", "Sample from the legal moves only")
                if turn.ended:
                    break


@check("``sample_random_action`` leaves the episode as it is.")
def _sampling(subject: Subject) -> None:
    for recording in subject.few:
        with subject.make() as env:
            lines = [as_line(env.reset(seed=recording.seed))]
            for action in recording.actions:
                for _ in range(3):
                    random_action(env)
                lines += play(env, [action])
        where = "with actions sampled at each turn"
        require_same(recording.lines, lines, where, "Draw them from self.action_rng")


@check("An episode ends within ``max_turns``, also if the agent says the same again and again.")
def _max_turns(subject: Subject) -> None:
    for seed in subject.seeds[:3]:
        for stubborn in (False, True):
            with subject.make() as env:
                env.reset(seed=seed)
                limit = env.max_turns
                if limit is None:
                    continue
                whole = isinstance(limit, int) and limit >= 1
                require(whole, f"max_turns is {limit!r}", "Make it a positive int, or None")
                action = random_action(env)
                for turn in itertools.count(1):
                    if Turn(*env.step(action)).ended:
                        break
                    require(turn < limit, f"{limit} turns did not end the episode", "Count every step")
                    action = action if stubborn else random_action(env)


@check("``step`` raises gem.ResetNeeded before the first ``reset``, and after an episode has ended.")
def _step_needs_reset(subject: Subject) -> None:
    with subject.make() as env:
        require(needs_reset(env), "a step before reset was taken", RAISE_RESET_NEEDED)
        env.reset(seed=subject.seeds[0])
        for turn in range(ENDLESS):
            if Turn(*env.step(random_action(env) if turn < ENDLESS // 2 else "")).ended:
                for _ in range(2):
                    require(needs_reset(env), "a step after the end was taken", RAISE_RESET_NEEDED)
                break


@check("``close`` may be called twice, before and after an episode; ``with`` gives the environment.")
def _close(subject: Subject) -> None:
    subject.make().close()
    env = subject.make()
    env.reset(seed=subject.seeds[0])
    env.close()
    env.close()
    with env as entered:
        require(entered is env, "`with env as e` gave something else", "Return self from __enter__")
