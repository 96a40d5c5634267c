"""Did a run learn? Compares the success rate of its last ten steps with that of its first ten.

python ci/check_learning.py out/trl/metrics.jsonl --gain 0.2
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of a run")
    parser.add_argument("--gain", type=float, required=True, help="by how much the success rate must have risen")
    parser.add_argument("--window", type=int, default=10, help="steps to average over")
    args = parser.parse_args()

    rates = [json.loads(line)["success_rate"] for line in args.metrics.read_text().splitlines()]
    rates = [rate for rate in rates if rate is not None]  # a step of failures only has none
    if len(rates) < 2 * args.window:
        sys.exit(f"{args.metrics} has {len(rates)} steps, fewer than two windows of {args.window}")
    before, after = (sum(part) / args.window for part in (rates[: args.window], rates[-args.window :]))
    print(f"{args.metrics}: success rate {before:.3f} -> {after:.3f} ({after - before:+.3f})")
    if after - before < args.gain:
        sys.exit(f"the success rate rose by less than {args.gain}")


if __name__ == "__main__":
    main()
