"""Terminals in Docker under the names of gem-llm, which are not supported: see :mod:`gem.envs.terminal_env`."""
