"""What tests an environment: for this project's tests and for other people's."""

from gem.testing.check_env import CheckFailed, check_env

__all__ = ["CheckFailed", "check_env"]
