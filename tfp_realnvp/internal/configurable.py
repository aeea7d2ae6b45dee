"""Reads an object's constructor arguments from its attributes."""

import inspect
from typing import Any


class Configurable:
    """A base for classes that store each constructor argument as an attribute of that name."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments; `NotImplementedError` if one is not an attribute."""
        _, *names = inspect.signature(type(self).__init__).parameters
        if missing := [name for name in names if not hasattr(self, name)]:
            raise NotImplementedError(
                f"{type(self).__name__}: expected an attribute for each constructor argument, or a "
                f"get_config that returns the arguments, got no attributes {missing}."
            )
        return {name: getattr(self, name) for name in names}
