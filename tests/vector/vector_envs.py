"""Environments that do what they are told: also raise, hang, take all memory, and end their process."""

import asyncio
import os
import threading
import time

import gem

hold = threading.Event()
"""Lets the steps end that hang by "hang"."""


class Told(gem.Env):
    """Its action is what it does; any other text is a move. The episode ends after some turns."""

    over = True

    def __init__(self, turns=5, seed=None):
        super().__init__()
        self._turns = turns

    def reset(self, seed=None):
        super().reset(seed)
        self.turn = 0
        self.total = 0
        self.over = False
        return f"begin {self.rng.random()}", {"turn": 0}

    def step(self, action):
        self.misbehave(action)
        return self.move(action)

    def misbehave(self, action):
        if action == "hang":
            hold.wait(60)
        elif action == "sleep":
            time.sleep(0.3)
        elif action == "exit":
            os._exit(7)
        elif action == "memory":
            self._hoard = bytearray(6 << 30)  # which most machines would promise

    def move(self, action):
        if action == "raise":
            raise ValueError("told to")
        if action == "interrupt":
            raise KeyboardInterrupt("me")
        if action == "quit":
            raise SystemExit(3)
        if action == "nonsense":
            return "no", None, False, False, {}
        if action == "unsendable":
            return "no", 0.0, False, False, {"lock": threading.Lock()}
        if self.over:
            raise gem.ResetNeeded
        self.turn += 1
        self.total += len(action)
        self.over = self.turn == self._turns
        return f"{self.turn} {self.total} {self.rng.random()}", self.rng.random(), self.over, False, {"turn": self.turn}

    def sample_random_action(self):
        return "x" * self.action_rng.randint(1, 9)


class AsyncTold(Told):
    """The same, with async steps."""

    asynchronous = True

    async def reset_async(self, seed=None):
        await asyncio.sleep(0)
        return self.reset(seed)

    async def step_async(self, action):
        if action == "hang":
            await asyncio.sleep(60)
        elif action == "stubborn":
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    continue
        elif action == "sleep":
            await asyncio.sleep(0.3)
        else:
            await asyncio.sleep(0)
        return self.move(action)


class Unsavable(Told):
    """Its state is not JSON data, and so it cannot be brought back unless its seed is known."""

    def reset(self, seed=None):
        result = super().reset(seed)
        self.thing = object()
        return result


class Drifting(Told):
    """Does not play the same again."""

    def move(self, action):
        _, *others = super().move(action)
        return f"{os.getpid()}", *others


class Broken(Told):
    """Fails in the way that its argument says, whatever it is told."""

    def __init__(self, how):
        super().__init__()
        self._how = how

    def step(self, action):
        self.misbehave(self._how)
        return self.move(self._how)


class AsyncBroken(AsyncTold):
    def __init__(self, how):
        super().__init__()
        self._how = how

    async def step_async(self, action):
        return await super().step_async(self._how)


class Unbuildable(Told):
    def __init__(self):
        raise ValueError("no data")


class BreaksOnReset(Told):
    """Its second reset, and every reset of a fresh one, raises."""

    count = 0

    def reset(self, seed=None):
        BreaksOnReset.count += 1
        if BreaksOnReset.count > 1:
            raise ConnectionError("no server")
        return super().reset(seed)


def ends_its_process():
    """Build nothing."""
    os._exit(7)
