"""Running code that a model wrote, kept from everything else on this machine.

:func:`run` runs a program once, and :class:`Session` runs pieces of code that share variables. Both take
:class:`Limits` and return a :class:`Result`. :func:`describe` tells what holds on this machine, by trying.
"""

from gem.sandbox.describe import Description, describe
from gem.sandbox.limits import Limits, Result, SandboxUnavailable
from gem.sandbox.running import Session, run

__all__ = ["Description", "Limits", "Result", "SandboxUnavailable", "Session", "describe", "run"]
