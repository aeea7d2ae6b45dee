"""The events, condition and weights in a batch: an array, a tuple or a dictionary."""

from __future__ import annotations

from typing import Any

__all__ = ["condition_in", "events_in", "weights_in"]


def events_in(data: Any) -> Any:
    """Returns the images of a batch with or without labels.

    Args:
      data: images, a tuple with images as first element, or a dictionary with images as `'image'`.

    Raises:
      ValueError: if a dictionary has no key `'image'`.
    """
    if isinstance(data, (tuple, list)):
        return events_in(data[0])
    if isinstance(data, dict):
        if "image" not in data:
            raise ValueError(f"expected a key 'image', got {sorted(data)}.")
        data = data["image"]
    return data


def condition_in(data: Any) -> Any:
    """Returns the condition of a batch, or `None`.

    Args:
      data: images; a tuple of images and conditions; or a dictionary with the condition as
        `'conditional_input'`, or labels as `'label'`.
    """
    if isinstance(data, (tuple, list)):
        has_condition = len(data) > 1 and data[1] is not None
        return data[1] if has_condition else condition_in(data[0])
    if isinstance(data, dict):
        return data.get("conditional_input", data.get("label"))
    return None


def weights_in(data: Any) -> Any:
    """Returns the weights of the events of a batch, or `None`.

    Args:
      data: images; a tuple whose third element has the weights; or a dictionary with the weights as
        `'sample_weight'`.
    """
    if isinstance(data, (tuple, list)):
        has_weights = isinstance(data, tuple) and len(data) > 2 and data[2] is not None
        return data[2] if has_weights else weights_in(data[0])
    if isinstance(data, dict):
        return data.get("sample_weight")
    return None
