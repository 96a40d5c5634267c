"""What tests an environment, an engine or an adapter: for this project's tests and for other people's."""

from gem.testing.check_env import CheckFailed, check_env
from gem.testing.scripted_engine import ScriptedEngine

__all__ = ["CheckFailed", "ScriptedEngine", "check_env"]
