"""Sokoban by a search over pushes for any solution that is short enough."""

from __future__ import annotations

import heapq
import re
from collections.abc import Generator
from typing import NamedTuple

_WEIGHT = 3
"""Of the pushes that are left, in the order of the search: more finds longer solutions sooner."""
_FAR = 10**6


class _Node(NamedTuple):
    """How a position was reached: what it cost, from where, and the walk and push that led to it."""

    moves: int
    before: tuple[int, int] | None
    walk: tuple[str, ...]


def solve(observation: str) -> Generator[str, str, None]:
    """Plan once from the first room; nothing in the game is left to chance."""
    limit = re.search(r"at most (\d+) turns", observation)
    assert limit, "the task names the turns"
    rows = [line.split() for line in observation.splitlines()[1:]]
    for move in plan(rows, int(limit[1])):
        yield f"\\boxed{{{move}}}"


def plan(rows: list[list[str]], limit: int) -> list[str]:
    """Return at most ``limit`` moves that solve the room, by weighted A* over (boxes, player)."""
    cols = len(rows[0])
    symbols = [symbol for row in rows for symbol in row]
    steps = {"up": -cols, "down": cols, "left": -1, "right": 1}
    floor = {cell for cell, symbol in enumerate(symbols) if symbol != "#"}
    targets = [cell for cell, symbol in enumerate(symbols) if symbol in "O√S"]
    distances = [_pushes_to(target, floor, steps) for target in targets]
    boxes = sum(1 << cell for cell, symbol in enumerate(symbols) if symbol in "X√")
    player = next(cell for cell, symbol in enumerate(symbols) if symbol in "PS")

    bounds: dict[int, int] = {}  # of the pushes that boxes need
    nodes: dict[tuple[int, int], _Node] = {(boxes, player): _Node(0, None, ())}
    queue = [(0, 0, boxes, player)]
    while queue:
        _, moves, boxes, player = heapq.heappop(queue)
        if moves > nodes[boxes, player].moves:
            continue
        if bounds.get(boxes) == 0:
            return _moves(nodes, (boxes, player))
        for cell, walk in _walks(player, floor, boxes, steps).items():
            for move, step in steps.items():
                box, beyond = cell + step, cell + 2 * step
                if not boxes >> box & 1 or beyond not in floor or boxes >> beyond & 1:
                    continue
                pushed = boxes ^ 1 << box ^ 1 << beyond
                if pushed not in bounds:
                    bounds[pushed] = _bound(pushed, distances)
                done = moves + len(walk) + 1
                if done + bounds[pushed] > limit:
                    continue
                if (pushed, box) not in nodes or nodes[pushed, box].moves > done:
                    nodes[pushed, box] = _Node(done, (boxes, player), (*walk, move))
                    heapq.heappush(queue, (done + _WEIGHT * bounds[pushed], done, pushed, box))
    raise AssertionError(f"there is no solution in {limit} moves")


def _moves(nodes: dict[tuple[int, int], _Node], end: tuple[int, int]) -> list[str]:
    walks = []
    node = nodes[end]
    while node.before is not None:
        walks.append(node.walk)
        node = nodes[node.before]
    return [move for walk in reversed(walks) for move in walk]


def _walks(player: int, floor: set[int], boxes: int, steps: dict[str, int]) -> dict[int, tuple[str, ...]]:
    """Return the shortest walk to each cell that can be reached without a push."""
    walks: dict[int, tuple[str, ...]] = {player: ()}
    queue = [player]
    for cell in queue:
        walk = walks[cell]
        for move, step in steps.items():
            new = cell + step
            if new in floor and not boxes >> new & 1 and new not in walks:
                walks[new] = (*walk, move)
                queue.append(new)
    return walks


def _pushes_to(target: int, floor: set[int], steps: dict[str, int]) -> dict[int, int]:
    """Return for each cell the pushes that a lone box needs from there, if it can get to the target at all."""
    pushes = {target: 0}
    queue = [target]
    for cell in queue:
        for step in steps.values():
            if cell + step in floor and cell + 2 * step in floor and cell + step not in pushes:
                pushes[cell + step] = pushes[cell] + 1
                queue.append(cell + step)
    return pushes


def _bound(boxes: int, distances: list[dict[int, int]]) -> int:
    """Return the fewest pushes that take each box to a target of its own, if boxes did not block each other."""
    best = {0: 0}  # by the targets used so far, as bits
    while boxes:
        low = boxes & -boxes
        boxes ^= low
        cell = low.bit_length() - 1
        new: dict[int, int] = {}
        for used, pushes in best.items():
            for i, distance in enumerate(distances):
                if not used >> i & 1 and cell in distance:
                    total = pushes + distance[cell]
                    if total < new.get(used | 1 << i, _FAR):
                        new[used | 1 << i] = total
        best = new
    return min(best.values(), default=_FAR)
