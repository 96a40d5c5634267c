r"""What the games share.

The action is the last ``\boxed{...}`` of the text. A game says what a move means; this class says what
follows for every game alike:

=================  ==========================================  =======
the text           effect                                      reward
=================  ==========================================  =======
holds no move      the episode ends                            -0.1
an illegal move    the turn is spent, the game goes on         0
a legal move       as the game says                            as the game says
the winning move   the episode ends, ``info["success"]``       brings the return to 1.0
=================  ==========================================  =======

The last turn truncates the episode. An observation holds all that the player may see: there are no
parts of it in ``info``.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Literal

from gem.core import Env, Info, ResetNeeded, StepResult
from gem.utils.constants import LanguageGameReward
from gem.utils.parsing import extract_last_boxed_answer

_ILLEGAL = LanguageGameReward.invalid_action_reward
_UNPARSEABLE = LanguageGameReward.format_error_reward


class Outcome:
    """What a move did. Games return the same one again for the same words, so nothing changes one.

    Attributes:
        text: what the player is told.
        reward: what the move pays.
        end: ``"win"`` or ``"loss"`` if it ended the game, else ``""``.
        legal: False if the rules forbid the move.
    """

    __slots__ = ("end", "legal", "reward", "text")  # half the time of a named tuple, and one is made a step

    def __init__(
        self, text: str, reward: float = 0.0, end: Literal["", "win", "loss"] = "", legal: bool = True
    ) -> None:
        self.text = text
        self.reward = reward
        self.end = end
        self.legal = legal


def illegal(text: str) -> Outcome:
    """Return the outcome of a move that the rules forbid."""
    return Outcome(text, _ILLEGAL, "", False)


def in_rows(cells: Sequence[Any], cols: int) -> tuple[tuple[Any, ...], ...]:
    """Return cells row by row, for attributes that are read as in gem-llm; what is in a tuple cannot be set in vain."""
    return tuple(tuple(cells[start : start + cols]) for start in range(0, len(cells), cols))


class Game(Env):
    """A game of text.

    Subclasses write :meth:`deal`, :meth:`parse`, :meth:`play`, :meth:`random_move`, and, if there is a board,
    :meth:`get_task_suffix`.

    Args:
        max_turns: moves until the episode is truncated; None if :meth:`deal` draws it.
    """

    reward_range = (LanguageGameReward.format_error_reward, LanguageGameReward.success_reward)
    blocking = False

    turn_count = 0
    over = True

    def __init__(self, max_turns: int | None) -> None:
        super().__init__()
        if max_turns is not None and max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        self.max_turns = max_turns
        self._given: dict[str, Any] = {}
        self._sizes: tuple[Any, ...] = ()
        self._dealt: dict[str, Any] = {}

    def _take(self, **sizes: Any) -> None:
        """Take note of the sizes that the constructor was given; None is drawn at each reset. They may be set later."""
        self._given, self._sizes, self._dealt = sizes, tuple(sizes.values()), dict(sizes)
        for name, value in sizes.items():
            setattr(self, name, value)

    def _adopt_changes(self) -> None:
        """Take note of sizes that were set since the last reset.

        Raises:
            ValueError: the constructor would refuse them.
        """
        changes = {}
        for name, dealt in self._dealt.items():
            if (size := getattr(self, name)) != dealt:
                changes[name] = size
        if changes:
            type(self)(**{**self._arguments(), **changes})
            self._remember(**changes)
            self._given |= changes
            self._sizes = tuple(self._given.values())

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore; the sizes of the episode are no change of what was given."""
        super().set_state(state)
        self._dealt = {name: getattr(self, name) for name in self._given}

    @abc.abstractmethod
    def deal(self) -> str:
        """Draw a game from ``self.rng``, set ``self.max_turns``, and return the instructions."""

    @abc.abstractmethod
    def parse(self, answer: str) -> Any:
        r"""Return the move that the text inside ``\boxed{}`` stands for, or None."""

    @abc.abstractmethod
    def play(self, move: Any) -> Outcome:
        """Make a move."""

    @property
    def shown_state(self) -> str:
        """The board."""
        return self.get_task_suffix()

    def get_task_suffix(self) -> str:
        """Return the board, with which observations end; a name of gem-llm's."""
        return ""

    def last_turn_reward(self, move: Any, outcome: Outcome) -> float:
        """Return what the last turn pays if it does not win."""
        return outcome.reward

    @abc.abstractmethod
    def random_move(self) -> str:
        r"""Return a legal move as the text inside ``\boxed{}``, drawn from ``self.action_rng``."""

    def sample_random_action(self) -> str:
        """Return a random legal move."""
        if self.over:
            raise ResetNeeded
        return f"\\boxed{{{self.random_move()}}}"

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Deal a new game."""
        self._adopt_changes()
        super().reset(seed)
        self.turn_count = 0
        self.over = False
        instructions = self.deal()
        for name in self._given:
            self._dealt[name] = getattr(self, name)
        return instructions + self.get_task_suffix(), {}

    def step(self, action: str) -> StepResult:
        """Make the move that ``action`` holds."""
        if self.over:
            raise ResetNeeded
        self.turn_count = turn = self.turn_count + 1
        answer = extract_last_boxed_answer(action)
        move = None if answer is None else self.parse(answer.strip())
        if move is None:
            self.over = True
            text = "That is not a move in \\boxed{}. The game is over."
            return text, _UNPARSEABLE, True, False, {"success": False, "move": "unparseable"}

        outcome = self.play(move)
        if outcome.end:
            self.over = True
            info: Info = {"success": outcome.end == "win", "move": "legal"}
            return outcome.text + self.get_task_suffix(), outcome.reward, True, False, info
        info = {"success": False, "move": "legal" if outcome.legal else "illegal"}
        if turn < self.max_turns:  # type: ignore[operator]  # deal() sets it
            return outcome.text + self.get_task_suffix(), outcome.reward, False, False, info
        self.over = True
        text = f"{outcome.text} That was the last turn. The game is over.{self.get_task_suffix()}"
        return text, self.last_turn_reward(move, outcome), False, True, info
