"""Environments that a command names."""

from __future__ import annotations

from gem.cli.printing import stop
from gem.core import Env, EnvSpec
from gem.envs.registration import make
from gem.registry import find_spec


def find(env_id: str) -> EnvSpec:
    """Return a registered environment, or end the command."""
    try:
        return find_spec(env_id)
    except ValueError as error:
        stop(str(error))


def build(env_id: str) -> Env:
    """Build an environment, or end the command."""
    try:
        return make(find(env_id).id)
    except (ImportError, TypeError, ValueError) as error:
        stop(str(error), code=1)
