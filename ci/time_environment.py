"""How long were the episodes of a step played, and how long do their environments alone take?

python ci/time_environment.py episodes.jsonl 20
"""

from __future__ import annotations

import itertools
import json
import sys
import time

from gem.rollout import read_jsonl, replay


def main() -> None:
    path, steps = sys.argv[1], int(sys.argv[2])
    last = sorted(read_jsonl(path), key=lambda episode: episode.started)
    if steps > 1:  # the file has the first and the last step, with the others between them
        gaps = [after.started - before.started for before, after in itertools.pairwise(last)]
        last = last[1 + gaps.index(max(gaps)) :]
    since = time.perf_counter()
    for episode in last:
        replay(episode)
    environment = time.perf_counter() - since
    rollout = max(episode.ended for episode in last) - min(episode.started for episode in last)
    print(json.dumps({"rollout": rollout, "environment": environment}))


if __name__ == "__main__":
    main()
