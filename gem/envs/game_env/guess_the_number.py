r"""GuessTheNumber: find a number by being told higher or lower.

Reward: 1 for the number. In v0 the last turn pays ``1 - distance / (max - min)`` for any number in the
range, so a player that guesses the middle and then stalls earns about 0.75 without playing; v1 pays
for the number only.
"""

from __future__ import annotations

import math
import re

from gem.envs.game_env.game import Game, Outcome, illegal

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


class GuessTheNumberEnv(Game):
    r"""Guess a number with ``\boxed{n}``.

    Args:
        min_number: the lowest number; None draws 1 to 10 at each reset.
        max_number: the highest number, above 10 if the lowest is drawn; None draws 5 to 50 more than the lowest.
        max_turns: guesses; None allows ``ceil(sqrt(max - min)) + 1``.
        shaped: whether the last turn pays for being near (v0).
    """

    def __init__(
        self,
        min_number: int | None = 1,
        max_number: int | None = 20,
        max_turns: int | None = 20,
        shaped: bool = True,
    ) -> None:
        super().__init__(max_turns)
        lowest = 10 if min_number is None else min_number  # the highest that may be drawn for it
        if max_number is not None and lowest >= max_number:
            raise ValueError(f"min_number must be below max_number, got {min_number} and {max_number}")
        self._take(min_number=min_number, max_number=max_number, max_turns=max_turns)
        self._shaped = shaped

    def deal(self) -> str:
        """Draw the range (if it is random) and the number."""
        low, high, max_turns = self._sizes
        self.min_number = self.rng.randint(1, 10) if low is None else low
        self.max_number = self.min_number + self.rng.randint(5, 50) if high is None else high
        self.max_turns = max_turns or math.ceil(math.sqrt(self.max_number - self.min_number)) + 1
        self.game_number = self.rng.randint(self.min_number, self.max_number)
        self.previous_guesses: list[int] = []
        return (
            f"Guess The Number. I have picked a whole number from {self.min_number} to {self.max_number}. "
            f"You have {self.max_turns} turns to find it. After each guess I say whether my number is "
            f"higher or lower. Put your guess into \\boxed{{}}, for example \\boxed{{{self.min_number}}}. "
            "What is your first guess?"
        )

    def parse(self, answer: str) -> int | None:
        """Read a whole number of at most 18 digits."""
        if answer.isdecimal() and answer.isascii() and len(answer) <= 18:
            return int(answer)
        return int(answer) if _NUMBER.fullmatch(answer) else None

    def play(self, move: int) -> Outcome:
        """Compare the guess with the number."""
        if not self.min_number <= move <= self.max_number:
            return illegal(f"{move} is not between {self.min_number} and {self.max_number}.")
        if move in self.previous_guesses:
            return illegal(f"You have guessed {move} before.")
        self.previous_guesses.append(move)
        if move == self.game_number:
            return Outcome(f"Yes, my number is {move}. Congratulations! You win.", 1.0, "win")
        return Outcome(f"My number is {'higher' if move < self.game_number else 'lower'} than {move}.")

    def last_turn_reward(self, move: int, outcome: Outcome) -> float:
        """Pay for being near in v0, nothing in v1."""
        if not self._shaped or not self.min_number <= move <= self.max_number:
            return 0.0
        return 1 - abs(move - self.game_number) / (self.max_number - self.min_number)

    def random_move(self) -> str:
        """Return a guess that was not made yet."""
        left = [n for n in range(self.min_number, self.max_number + 1) if n not in self.previous_guesses]
        return str(self.action_rng.choice(left))
