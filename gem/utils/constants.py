"""Constants that environments share."""

TERMINAL_STATE = "<｜TERMINAL_STATE｜>"
"""An observation that says nothing, for environments with nothing to say once the task has ended."""


class LanguageGameReward:
    """Rewards that the games share."""

    success_reward = 1.0
    internal_step_reward = 0.0
    fail_reward = 0.0
    invalid_action_reward = 0.0
    format_error_reward = -0.1
