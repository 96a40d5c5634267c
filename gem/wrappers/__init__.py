"""Wrappers: environments around environments."""

from gem.wrappers.episode_tracking_wrapper import EpisodeTrackingWrapper
from gem.wrappers.observation_wrapper import ObservationWrapper
from gem.wrappers.time_limit import TimeLimit
from gem.wrappers.wrapper_factory import WRAPPER_FACTORY, get_wrapper_fns

__all__ = ["WRAPPER_FACTORY", "EpisodeTrackingWrapper", "ObservationWrapper", "TimeLimit", "get_wrapper_fns"]
