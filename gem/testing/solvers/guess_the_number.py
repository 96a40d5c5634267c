"""GuessTheNumber by halving the interval."""

from __future__ import annotations

import re
from collections.abc import Generator


def solve(observation: str) -> Generator[str, str, None]:
    """Guess the middle of what is left."""
    bounds = re.search(r"from (\d+) to (\d+)", observation)
    assert bounds, "the task names the range"
    low, high = int(bounds[1]), int(bounds[2])
    while True:
        guess = (low + high) // 2
        observation = yield f"\\boxed{{{guess}}}"
        if "higher" in observation:
            low = guess + 1
        else:
            high = guess - 1
