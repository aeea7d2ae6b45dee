"""Reads an object's constructor arguments from its attributes."""

import inspect
from collections.abc import Iterator
from typing import Any


class Configurable:
    """A base for classes that store each constructor argument as an attribute of that name."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments; `NotImplementedError` if one is not an attribute."""
        names = list(_argument_names(type(self)))
        if missing := [name for name in names if not hasattr(self, name)]:
            raise NotImplementedError(
                f"{type(self).__name__}: expected an attribute for each constructor argument, or a "
                f"get_config that returns the arguments, got no attributes {missing}."
            )
        return {name: getattr(self, name) for name in names}


def _argument_names(cls: type) -> Iterator[str]:
    """Yields the constructor arguments; `**kwargs` stands for the arguments of the base class."""
    for base in cls.__mro__[:-1]:
        if "__init__" in vars(base):
            _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            yield from (p.name for p in parameters if p.kind != p.VAR_KEYWORD)
            if all(p.kind != p.VAR_KEYWORD for p in parameters):
                return
