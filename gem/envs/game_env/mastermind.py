r"""Mastermind: find a code of digits from counts of black and white pegs.

Reward: the gain in the best number of black pegs so far, over the length of the code. It adds up to 1
for the code, and a guess that is no better than an earlier one pays nothing, so stalling does not pay.
"""

from __future__ import annotations

import functools
import operator
import random
from collections import Counter

from gem.envs.game_env.game import Game, Outcome, illegal

_RANDOM_SIZES = ((2, 4, 10), (4, 6, 20), (4, 8, 30))


class MastermindEnv(Game):
    r"""Guess a code with ``\boxed{1 2 3 4}``.

    If any of the sizes is None, all three are drawn at each reset: (2, 4, 10), (4, 6, 20) or (4, 8, 30).

    Args:
        code_length: digits in the code.
        num_numbers: the code is made of 1 to this number.
        duplicate_numbers: whether a digit may stand in the code, and in a guess, more than once.
        max_turns: guesses.
    """

    def __init__(
        self,
        code_length: int | None = 4,
        num_numbers: int | None = 6,
        duplicate_numbers: bool = False,
        max_turns: int | None = 20,
    ) -> None:
        super().__init__(max_turns)
        if code_length is not None and num_numbers is not None:
            if min(code_length, num_numbers) < 1:
                raise ValueError(f"code_length and num_numbers must be at least 1, got {code_length}, {num_numbers}")
            if not duplicate_numbers and code_length > num_numbers:
                raise ValueError(f"there is no code of {code_length} different digits from 1 to {num_numbers}")
        self._take(code_length=code_length, num_numbers=num_numbers, max_turns=max_turns)
        self._duplicates = duplicate_numbers

    @property
    def duplicate_numbers(self) -> bool:
        """Whether a digit may stand more than once."""
        return self._duplicates

    def deal(self) -> str:
        """Draw the sizes (if they are random) and the code."""
        sizes = self.rng.choice(_RANDOM_SIZES) if None in self._sizes else self._sizes
        self.code_length, self.num_numbers, self.max_turns = sizes
        self.game_code = self._draw(self.rng)
        self.previous_guesses: dict[str, int] = {}  # with their black pegs
        self.milestone = 0
        example = " ".join(str(i % self.num_numbers + 1) for i in range(self.code_length))
        return (
            f"Mastermind. I have picked a code of {self.code_length} digits from 1 to {self.num_numbers}; "
            f"a digit may{'' if self._duplicates else ' not'} appear twice. You have {self.max_turns} turns to find "
            "it. After each guess I count black pegs (right digit, right place) and white pegs (right digit, wrong "
            f"place). Put your guess into \\boxed{{}}, for example \\boxed{{{example}}}. What is your first guess?"
        )

    def parse(self, answer: str) -> list[int] | None:
        """Read whole numbers with blanks between them."""
        words = answer.split()
        digits = "".join(words)
        if not (digits.isdecimal() and digits.isascii()) or (len(digits) > 18 and max(map(len, words)) > 18):
            return None
        return list(map(int, words))

    def play(self, move: list[int]) -> Outcome:
        """Count the pegs."""
        if len(move) != self.code_length:
            return illegal(f"The code has {self.code_length} digits, your guess {len(move)}.")
        different = set(move)
        if not different <= _digits(self.num_numbers):
            return illegal(f"The digits go from 1 to {self.num_numbers}.")
        if not self._duplicates and len(different) < len(move):
            return illegal("A digit may not appear twice.")
        guess = " ".join([str(digit) for digit in move])
        if guess in self.previous_guesses:
            return illegal(f"You have guessed {guess} before.")
        self.previous_guesses[guess] = black = sum(map(operator.eq, move, self.game_code))
        if self._duplicates:
            white = (Counter(move) & Counter(self.game_code)).total() - black
        else:
            white = len(different.intersection(self.game_code)) - black
        reward = self.get_current_success_internal_reward(black)
        if black == self.code_length:
            return Outcome(f"Yes, the code is {guess}. Congratulations! You win.", reward, "win")
        return Outcome(f"{guess}: {black} black, {white} white.", reward)

    def get_current_success_internal_reward(self, blackpeg: int) -> float:
        """Return what a guess with some black pegs pays, and take note of it, since it is paid once."""
        gain = max(0, blackpeg - self.milestone)
        self.milestone += gain
        return gain / self.code_length

    def random_move(self) -> str:
        """Return a guess that was not made yet; the code is one, so there is one while the game goes on."""
        while True:
            guess = " ".join(map(str, self._draw(self.action_rng)))
            if guess not in self.previous_guesses:
                return guess

    def _draw(self, rng: random.Random) -> list[int]:
        digits = range(1, self.num_numbers + 1)
        return rng.choices(digits, k=self.code_length) if self._duplicates else rng.sample(digits, self.code_length)


@functools.cache
def _digits(num_numbers: int) -> frozenset[int]:
    return frozenset(range(1, num_numbers + 1))
