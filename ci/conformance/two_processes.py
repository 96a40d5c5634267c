"""Gradients and updates that two processes compute together, over gloo; each has a part of the batch."""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Callable
from concurrent import futures
from dataclasses import replace
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from gem.testing.conformance import Harness, prepare
from gem.testing.gradients import ComputedGradient
from gem.testing.scenarios import Scenario, ScriptedPolicy, scenarios

F = TypeVar("F", bound=Callable[..., Any])

SUFFIX = ", two processes"
"""How the name of a loss or an optimiser ends that two processes compute."""

SECONDS = 120.0
"""What a gradient may take, without the start of the processes."""


def by_two(method: F) -> F:
    """Let a harness's ``compute_gradient`` or ``compute_updates`` run in two processes where the name ends so."""

    @wraps(method)
    def run(self: Harness, scenario: Scenario, policy: ScriptedPolicy, name: str) -> Any:
        if name.endswith(SUFFIX) and world() == 1:
            return in_two_processes(type(self), method.__name__, scenario.name, name)
        return method(self, scenario, policy, name)

    return cast("F", run)


def in_two_processes(harness: type[Harness], method: str, scenario: str, name: str) -> Any:
    """Return what a harness returns in the first of two processes, with the sequences of both.

    Raises:
        BrokenProcessPool: it takes too long.
        Exception: what a process has raised.
    """
    ranks = [each.submit(_of_rank, harness, method, scenario, name) for each in _processes()]
    done, waiting = futures.wait(ranks, return_when=futures.FIRST_EXCEPTION)
    if waiting:  # for the one that has failed
        for process in torch.multiprocessing.active_children():
            process.kill()
        _processes.cache_clear()
    return next(each.result() for each in sorted(done, key=ranks.index))


def of_all(value: float) -> float:
    """Return the sum of a number over all processes."""
    if world() == 1:
        return value
    total = torch.tensor(float(value), dtype=torch.float64)
    distributed.all_reduce(total)
    return float(total)


def most_of_all(value: float) -> int:
    """Return the greatest of a number over all processes."""
    found = torch.tensor(value)
    if world() > 1:
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def world() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return which of them this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def join_alone() -> None:
    """Be the only process of a group, unless this is one of two already."""
    if not distributed.is_initialized():
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="0")
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)


@lru_cache(maxsize=1)
def _processes() -> list[futures.ProcessPoolExecutor]:
    """Start two processes, which end with this one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    spawn = torch.multiprocessing.get_context("spawn")
    return [futures.ProcessPoolExecutor(1, spawn, initializer=_join, initargs=(rank, port)) for rank in (0, 1)]


def _join(rank: int, port: int) -> None:
    """Be one of the two, as torchrun would have it."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()})
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", rank=rank, world_size=2)


def _of_rank(harness_class: type[Harness], method: str, scenario: str, name: str) -> Any:
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # one that waits for the other would wait for ever
    harness = harness_class()
    tokenizer = harness.tokenizer()
    chosen = next(each for each in scenarios(tokenizer) if each.name == scenario)
    _, policy = prepare(chosen, tokenizer)
    computed = getattr(harness, method)(chosen, policy, name)
    if isinstance(computed, ComputedGradient):
        parts: list[Any] = [None, None]
        distributed.all_gather_object(parts, computed.sequences)
        computed = replace(computed, sequences=parts[0] + parts[1])
    faulthandler.cancel_dump_traceback_later()
    return computed
