r"""TowerofHanoi: move all disks from tower A to tower C.

Reward: 1 for the solution. In v0 the last turn pays the share of the disks that stand on C, so a player that
parks the smallest disk there and then stalls earns a third of an easy game; v1 pays for the solution only.
"""

from __future__ import annotations

import functools
import re

from gem.envs.game_env.game import Game, Outcome, illegal

_MOVE = re.compile(r"([ABCabc])\s*,?\s*([ABCabc])")
_USUAL = {f"{a} {b}": (a, b) for a in "ABC" for b in "ABC"}
_SAME = illegal("A move needs two different towers.")
_EMPTY = {name: illegal(f"Tower {name} is empty.") for name in "ABC"}
_RANDOM_SIZES = ((3, 10), (4, 20), (5, 35))


class TowerofHanoiEnv(Game):
    r"""Move the top disk of one tower to another with ``\boxed{A C}``.

    If either size is None, both are drawn at each reset: (3, 10), (4, 20) or (5, 35).

    Args:
        num_disks: disks on tower A.
        max_turns: moves.
        shaped: whether the last turn pays for disks on C (v0).
    """

    def __init__(self, num_disks: int | None = 3, max_turns: int | None = 100, shaped: bool = True) -> None:
        super().__init__(max_turns)
        if num_disks is not None and num_disks < 1:
            raise ValueError(f"num_disks must be at least 1, got {num_disks}")
        self._take(num_disks=num_disks, max_turns=max_turns)
        self._shaped = shaped

    def deal(self) -> str:
        """Draw the sizes (if they are random) and stack the disks."""
        sizes = self.rng.choice(_RANDOM_SIZES) if None in self._sizes else self._sizes
        self.num_disks, self.max_turns = sizes
        self.board: dict[str, list[int]] = {"A": list(range(self.num_disks, 0, -1)), "B": [], "C": []}
        return _instructions(self.num_disks, self.max_turns)

    def parse(self, answer: str) -> tuple[str, str] | None:
        """Read two towers."""
        if usual := _USUAL.get(answer):
            return usual
        match = _MOVE.fullmatch(answer)
        return (match[1].upper(), match[2].upper()) if match else None

    def play(self, move: tuple[str, str]) -> Outcome:
        """Move a disk."""
        source, target = move
        if source == target:
            return _SAME
        taken, given = self.board[source], self.board[target]
        if not taken:
            return _EMPTY[source]
        disk = taken[-1]
        if given and given[-1] < disk:
            return illegal(f"Disk {disk} may not lie on disk {given[-1]}.")
        given.append(taken.pop())
        if target == "C" and len(given) == self.num_disks:
            return Outcome("All disks are on tower C. Congratulations! You win.", 1.0, "win")
        return _moved(disk, source, target)

    def get_task_suffix(self) -> str:
        """Draw the towers, a line each."""
        a, b, c = self.board.values()
        return f"\nA:{_row(*a)}\nB:{_row(*b)}\nC:{_row(*c)}"

    def last_turn_reward(self, move: tuple[str, str], outcome: Outcome) -> float:
        """Pay for the disks on C in v0, nothing in v1."""
        return len(self.board["C"]) / self.num_disks if self._shaped else 0.0

    def random_move(self) -> str:
        """Return a legal move."""
        tops = {name: disks[-1] if disks else float("inf") for name, disks in self.board.items()}
        return self.action_rng.choice([f"{a} {b}" for a in "ABC" for b in "ABC" if tops[a] < tops[b]])


@functools.lru_cache(maxsize=64)
def _instructions(num_disks: int, max_turns: int) -> str:
    return (
        f"Tower of Hanoi. Move all {num_disks} disks from tower A to tower C in at most {max_turns} turns. "
        "A move takes the top disk of a tower to another tower; a disk may not lie on a smaller one. "
        "\\boxed{A C} moves the top disk of A to C. Towers are shown from bottom to top."
    )


@functools.lru_cache(maxsize=4096)
def _row(*disks: int) -> str:
    return "".join(f" {disk}" for disk in disks)


@functools.lru_cache(maxsize=4096)
def _moved(disk: int, source: str, target: str) -> Outcome:
    return Outcome(f"Disk {disk} moves from {source} to {target}.")
