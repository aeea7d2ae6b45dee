"""Takes events, condition and weights from a batch: an array, a tuple or a dictionary."""

from __future__ import annotations

from typing import Any


def events_in(data: Any) -> Any:
    """Returns the events: `data`, its first element, or its `'image'`."""
    if isinstance(data, (tuple, list)):
        return events_in(data[0])
    if isinstance(data, dict):
        if "image" not in data:
            raise ValueError(f"expected a key 'image', got {sorted(data)}.")
        data = data["image"]
    return data


def condition_in(data: Any) -> Any:
    """Returns the condition, or `None`: the second element, `'conditional_input'` or `'label'`."""
    if isinstance(data, (tuple, list)):
        has_condition = len(data) > 1 and data[1] is not None
        return data[1] if has_condition else condition_in(data[0])
    if isinstance(data, dict):
        return data.get("conditional_input", data.get("label"))
    return None


def weights_in(data: Any) -> Any:
    """Returns the weights of the events, or `None`: the third element, or `'sample_weight'`."""
    if isinstance(data, (tuple, list)):
        has_weights = isinstance(data, tuple) and len(data) > 2 and data[2] is not None
        return data[2] if has_weights else weights_in(data[0])
    if isinstance(data, dict):
        return data.get("sample_weight")
    return None
