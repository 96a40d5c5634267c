"""The published place of :class:`gem.envs.math_env.MathVisualEnv`."""

from gem.envs.math_env import MathVisualEnv

__all__ = ["MathVisualEnv"]
