r"""Wordle: find a word from marks on the letters of each guess.

Reward: 0.5 over the length of the word for each position that is green for the first time, and 0.5 for the word. A
position pays once, so repeating what is known pays nothing, and whoever collects greens and never names the word earns
0.5 at most: random words, 0.4.
"""

from __future__ import annotations

from gem.envs.game_env import words
from gem.envs.game_env.game import Game, Outcome, illegal

_RANDOM_LENGTHS = (3, 5)
_TURNS_A_LETTER = 5


class WordleEnv(Game):
    r"""Guess a word with ``\boxed{crane}``.

    If either size is None, both are drawn at each reset: 3 to 5 letters, and 5 turns a letter.

    Args:
        word_length: letters of the word, 3 to 9.
        only_real_words: whether a guess must be an English word.
        max_turns: guesses.
    """

    def __init__(self, word_length: int | None = 5, only_real_words: bool = True, max_turns: int | None = 20) -> None:
        super().__init__(max_turns)
        lengths = words.ACCEPTED_LENGTHS
        if word_length is not None and word_length not in lengths:
            raise ValueError(f"word_length must be {lengths[0]} to {lengths[-1]}, got {word_length}")
        self._take(word_length=word_length, max_turns=max_turns)
        self._only_real_words = only_real_words

    @property
    def all_words(self) -> list[str]:
        """Words of any length that may be guessed."""
        return [word for length in words.ACCEPTED_LENGTHS for word in words.accepted(length)]

    @property
    def available_words(self) -> list[str]:
        """Words of which the secret is one."""
        return list(words.common(self.word_length))

    @property
    def only_real_words(self) -> bool:
        """Whether a guess must be an English word."""
        return self._only_real_words

    @property
    def milestones(self) -> tuple[int, ...]:
        """For each position 1 if it was green, else 0."""
        return tuple(int(i in self.green) for i in range(self.word_length))

    def deal(self) -> str:
        """Draw the sizes (if they are random) and the word."""
        self.word_length, self.max_turns = self._sizes
        if None in self._sizes:
            self.word_length = self.rng.randint(*_RANDOM_LENGTHS)
            self.max_turns = self.word_length * _TURNS_A_LETTER
        secrets = words.common(self.word_length)
        self.secret_word = self.rng.choice(secrets).upper()
        self.previous_guesses: dict[str, str] = {}  # with their marks
        self.green: list[int] = []
        rule = "must be an English word" if self._only_real_words else "may be any letters"
        return (
            f"Wordle. I have picked a common English word of {self.word_length} letters. You have {self.max_turns} "
            f"turns to find it; a guess {rule}, and you cannot make it twice. I mark each letter of a guess with G "
            "(green: right letter, right place), Y (yellow: the letter is in the word at another place) or X (the "
            "letter is not in the word, or not that often). Put your guess into \\boxed{}, for example "
            f"\\boxed{{{secrets[len(secrets) // 2]}}}. What is your first guess?"
        )

    def parse(self, answer: str) -> str | None:
        """Read letters; blanks between them do not count."""
        word = answer if answer.isalpha() else "".join(answer.split())
        return word.lower() if word.isascii() and word.isalpha() else None

    def play(self, move: str) -> Outcome:
        """Mark the letters."""
        if len(move) != self.word_length:
            return illegal(f"The word has {self.word_length} letters, your guess {len(move)}.")
        if move in self.previous_guesses:
            return illegal(f"You have guessed {move} before.")
        if self._only_real_words and not words.is_word(move):
            return illegal(f"{move} is not in my list of English words.")
        secret = self.secret_word.lower()
        self.previous_guesses[move] = marks = mark(move, secret)
        reward = self.get_current_success_internal_reward(marks)
        text = f"{' '.join(move.upper())}\n{' '.join(marks)}\n"
        if move == secret:
            return Outcome(f"{text}Yes, the word is {move}. Congratulations! You win.", reward + 0.5, "win")
        return Outcome(f"{text}{move} is not the word.", reward)

    def get_current_success_internal_reward(self, feedback: str) -> float:
        """Return what the marks of a guess pay, and take note of it, since a position pays once."""
        if "G" not in feedback:
            return 0.0
        new = [i for i, symbol in enumerate(feedback) if symbol == "G" and i not in self.green]
        self.green += new
        return 0.5 * len(new) / self.word_length

    def random_move(self) -> str:
        """Return a common word that was not guessed yet; the secret is one, so there is one while the game goes on."""
        choices = words.common(self.word_length)
        guess = self.action_rng.choice(choices)
        while guess in self.previous_guesses:
            guess = self.action_rng.choice(choices)
        return guess


def mark(guess: str, secret: str) -> str:
    """Return a G, Y or X for each letter of a guess.

    A letter is marked no more often than it is in the secret: green ones first, then from left to right.

    >>> mark("geese", "these")
    'XXGGG'
    >>> mark("eerie", "these")
    'YXXXG'
    """
    marks = ""
    for letter, there in zip(guess, secret, strict=True):
        if letter == there:
            marks += "G"
        elif letter in secret:
            marks += "Y"
        else:
            marks += "X"
    if "Y" in marks and len(set(guess)) < len(guess):  # a letter that is there twice may be marked too often
        rest = [there for there, mark in zip(secret, marks, strict=True) if mark != "G"]
        for i, letter in enumerate(guess):
            if marks[i] == "Y":
                if letter in rest:
                    rest.remove(letter)
                else:
                    marks = f"{marks[:i]}X{marks[i + 1 :]}"
    return marks
