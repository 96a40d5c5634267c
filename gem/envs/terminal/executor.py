"""Commands in Docker containers are not supported; see :mod:`gem.envs.terminal.docker_env`."""

from gem.envs.terminal.docker_env import REASON
from gem.refusals import refuse

__getattr__ = refuse(__name__, ["DockerExecutor"], REASON)
