"""The name that gem-llm 0.1.0 gives to :class:`~gem.vector.thread_vector_env.ThreadVectorEnv`."""

from gem.vector.thread_vector_env import ThreadVectorEnv as AsyncVectorEnv

__all__ = ["AsyncVectorEnv"]
