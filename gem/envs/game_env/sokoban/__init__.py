"""Sokoban; see :mod:`gem.envs.game_env.sokoban.sokoban`."""

from gem.envs.game_env.sokoban.sokoban import SokobanEnv

__all__ = ["SokobanEnv"]
