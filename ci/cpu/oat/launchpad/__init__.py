"""A CPU shim for launchpad, of which there is no build for this Python: all nodes of a program in one process.

The part of it that Oat uses. A call to a node's handle runs in the node's own thread, in the order of the calls.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

IS_CPU_SHIM = True


class _Futures:
    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Callable[..., Future[Any]]:
        return lambda *args, **kwargs: self._handle.submit(name, *args, **kwargs)


class Handle:
    """What other nodes hold of a node: its methods, and the same as futures."""

    def __init__(self, node: CourierNode) -> None:
        self._node = node
        self._thread = ThreadPoolExecutor(1)
        self.futures = _Futures(self)

    def submit(self, name: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a method in the node's thread."""
        return self._thread.submit(getattr(self._node.instance, name), *args, **kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.submit(name, *args, **kwargs).result()


class CourierNode:
    """A node that is built when it is first needed."""

    def __init__(self, constructor: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._build = lambda: constructor(*args, **kwargs)
        self._lock = threading.Lock()
        self._instance: Any = None
        self.handle = Handle(self)

    @property
    def instance(self) -> Any:
        with self._lock:
            if self._instance is None:
                self._instance = self._build()
            return self._instance


class PyClassNode(CourierNode):
    """A node whose ``run`` is the program; here there is one."""


class Program:
    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: dict[str, CourierNode] = {}

    def add_node(self, node: CourierNode, label: str) -> Handle:
        self.nodes[label] = node
        return node.handle


def launch(program: Program, **_: Any) -> Any:
    """Run the servers among the nodes in threads, and the one learner here; return it when it has ended.

    A learner that fails ends the process, as it ends a program of launchpad's.
    """
    learners = [node for node in program.nodes.values() if isinstance(node, PyClassNode)]
    if len(learners) != 1:
        raise ValueError(f"the CPU shim for launchpad runs one learner, and this program has {len(learners)}")
    for node in program.nodes.values():
        if node not in learners and hasattr(node.instance, "run"):
            threading.Thread(target=node.instance.run, daemon=True).start()
    try:
        learners[0].instance.run()
    except BaseException:  # noqa: BLE001 - whatever it is, it ends the process
        traceback.print_exc()
        os._exit(1)  # the threads of the other nodes would wait for calls for ever
    return learners[0].instance


def stop() -> None:
    """Nothing to stop: the program ends with its learner."""
