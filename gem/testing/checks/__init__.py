"""The checks of :func:`gem.testing.check_env`, by theme. A new one is a function with the decorator ``check``.

A check builds the environments that it steps, and compares an episode with itself wherever it can, so that one fault in
an environment fails as few checks as possible.
"""

from gem.testing.checks import episodes, interface, reproducibility, rewards, state, text
from gem.testing.checks.base import Check, CheckFailed, Subject, checks_of

THEMES = (interface, reproducibility, state, episodes, text, rewards)
CHECKS: list[Check] = [check for theme in THEMES for check in checks_of(theme)]
"""All checks, in the order in which they run."""

__all__ = ["CHECKS", "THEMES", "Check", "CheckFailed", "Subject"]
