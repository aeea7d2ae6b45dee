"""A learning rate that knows how much time is left."""

__all__ = ["learning_rate_factor"]


def learning_rate_factor(
    step: int, time_used: float, warm_up_steps: int, decay_from: float
) -> float:
    """Returns what to multiply the learning rate by.

    It rises linearly over `warm_up_steps`, and falls linearly to 0 from the time `decay_from` on.

    #### Example

    >>> [learning_rate_factor(step, used, 100, 0.5) for step, used in
    ...  [(49, 0.0), (99, 0.1), (1000, 0.5), (1500, 0.75), (2000, 1.0)]]
    [0.5, 1.0, 1.0, 0.5, 0.0]

    Args:
      step: number of steps made so far.
      time_used: share of the time for training that has gone, from 0 to 1.
      warm_up_steps: number of steps until the rate is full.
      decay_from: share of the time at which it begins to fall; 1 keeps it.
    """
    warm = min(1.0, (step + 1) / max(1, warm_up_steps))
    if time_used <= decay_from:
        return warm
    return warm * max(0.0, (1 - time_used) / (1 - decay_from))
