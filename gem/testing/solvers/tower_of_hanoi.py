"""TowerofHanoi by recursion."""

from __future__ import annotations

from collections.abc import Generator


def solve(observation: str) -> Generator[str, str, None]:
    """Make the shortest solution's next move, whatever the position."""
    while True:
        towers = {line[0]: [int(disk) for disk in line[2:].split()] for line in observation.splitlines()[-3:]}
        disks = sum(map(len, towers.values()))
        observation = yield f"\\boxed{{{_next_move(towers, disks, 'C')}}}"


def _next_move(towers: dict[str, list[int]], disk: int, target: str) -> str:
    """Return the next move that brings the disks from ``disk`` down to the target, or "" when they are there."""
    if disk == 0:
        return ""
    here = next(name for name, disks in towers.items() if disk in disks)
    if here == target:
        return _next_move(towers, disk - 1, target)
    spare = ({"A", "B", "C"} - {here, target}).pop()
    return _next_move(towers, disk - 1, spare) or f"{here} {target}"
