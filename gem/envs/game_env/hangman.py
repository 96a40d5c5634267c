r"""Hangman: find a word by its letters.

Reward: 0.5 over the length of the word for each place that a letter reveals, and 0.5 for the win, by the last letter
or by naming the word; a named word also pays for the places that were still hidden. Turns are all that a wrong guess
costs, and there are many of them in a hard game, as published: a player that tries the letters in order of frequency,
whatever it sees, wins 82% of the hard games and 14% of the easy ones. Only the easy variant tells players apart.

The secret is a common word. Of those with three letters, families such as "bat, cat, fat, hat" are thinned out, so
that a player who knows the list finds every secret of every variant within its turns.
"""

from __future__ import annotations

from gem.envs.game_env import words
from gem.envs.game_env.game import Game, Outcome, illegal

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_RANDOM_SIZES = ((3, 10), (5, 15), (7, 20))


class HangmanEnv(Game):
    r"""Guess a letter with ``\boxed{e}`` or the word with ``\boxed{house}``.

    If either size is None, both are drawn at each reset: (3, 10), (5, 15) or (7, 20).

    Args:
        word_length: letters of the word, 3 to 9.
        hardcore: whether the word may be rare or inflected.
        max_turns: guesses.
    """

    def __init__(self, word_length: int | None = 5, hardcore: bool = False, max_turns: int | None = 20) -> None:
        super().__init__(max_turns)
        lengths = words.ACCEPTED_LENGTHS
        if word_length is not None and word_length not in lengths:
            raise ValueError(f"word_length must be {lengths[0]} to {lengths[-1]}, got {word_length}")
        self._take(word_length=word_length, max_turns=max_turns)
        self._hardcore = hardcore

    @property
    def all_words(self) -> list[str]:
        """Words of any length that may be guessed."""
        return [word for length in words.ACCEPTED_LENGTHS for word in words.accepted(length)]

    @property
    def available_words(self) -> list[str]:
        """Words of which the secret is one."""
        return list(self._secrets(self.word_length))

    @property
    def hardcore(self) -> bool:
        """Whether the word may be rare or inflected."""
        return self._hardcore

    def _secrets(self, length: int) -> tuple[str, ...]:
        return (words.accepted if self._hardcore else words.common)(length)

    def sample_random_letter(self) -> str:
        """Return any letter."""
        return self.action_rng.choice(_LETTERS)

    def sample_random_word(self) -> str:
        """Return a word of the secret's length."""
        return self.action_rng.choice(self._secrets(self.word_length))

    def deal(self) -> str:
        """Draw the sizes (if they are random) and the word."""
        sizes = self.rng.choice(_RANDOM_SIZES) if None in self._sizes else self._sizes
        self.word_length, self.max_turns = sizes
        secrets = self._secrets(self.word_length)
        self.secret_word = self.rng.choice(secrets).upper()
        self.board = "_" * self.word_length
        self.guessed_letters: list[str] = []
        kind = "an English word, perhaps a rare one," if self._hardcore else "a common English word"
        example = secrets[len(secrets) // 2]
        return (
            f"Hangman. I have picked {kind} of {self.word_length} letters. You have {self.max_turns} turns to find it: "
            "guess a letter, which is shown wherever it is in the word, or the whole word. You win when all letters "
            f"are shown or when you name the word. \\boxed{{{example[0]}}} guesses the letter {example[0]}, "
            f"\\boxed{{{example}}} the word {example}. '_' is a hidden letter."
        )

    def parse(self, answer: str) -> str | None:
        """Read letters; blanks between them do not count."""
        guess = "".join(answer.split())
        return guess.lower() if guess.isascii() and guess.isalpha() else None

    def play(self, move: str) -> Outcome:
        """Show a letter, or compare the word."""
        if len(move) not in (1, self.word_length):
            return illegal(f"The word has {self.word_length} letters, your guess {len(move)}.")
        if move in self.guessed_letters:
            return illegal(f"You have guessed {move} before.")
        self.guessed_letters.append(move)
        hidden = self.board.count("_")
        secret = self.secret_word.lower()
        if move == secret:
            self.board = secret
            return Outcome(
                f"Yes, the word is {move}. Congratulations! You win.", 0.5 + 0.5 * hidden / self.word_length, "win"
            )
        if len(move) > 1:
            return Outcome(f"{move} is not the word.")
        shown = secret.count(move)
        if not shown:
            return Outcome(f"{move} is not in the word.")
        self.board = "".join(b if b == move else a for a, b in zip(self.board, secret, strict=True))
        reward = self.get_current_success_internal_reward(move)
        if shown == hidden:
            return Outcome(
                f"{move} was the last letter: the word is {secret}. Congratulations! You win.", reward + 0.5, "win"
            )
        return Outcome(f"{move} is in the word{' twice' if shown == 2 else f' {shown} times' * (shown > 2)}.", reward)

    def get_current_success_internal_reward(self, player_guess: str) -> float:
        """Return what a letter pays that was not guessed yet."""
        return 0.5 * self.secret_word.lower().count(player_guess) / self.word_length

    def get_task_suffix(self) -> str:
        """Write the word with its hidden letters, and the guesses that were wrong."""
        secret = self.secret_word.lower()
        wrong = [guess for guess in self.guessed_letters if len(guess) > 1 or guess not in secret]
        line = f"\nWrong guesses: {', '.join(wrong)}" if wrong and self.board != secret else ""
        return f"\nWord: {' '.join(self.board.upper())}{line}"

    def random_move(self) -> str:
        """Return a letter that was not guessed yet; one of the word's is, while the game goes on."""
        return self.action_rng.choice([letter for letter in _LETTERS if letter not in self.guessed_letters])
