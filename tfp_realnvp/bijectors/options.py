"""Options of a flow: the check and the default of each, and when it applies, said once."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfp_realnvp.internal import validation

__all__ = ["Option", "check_choice", "check_flag", "check_integer", "markdown_table", "resolve"]

Options = types.SimpleNamespace
Check = Callable[[Any, str, str], Any]


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a flow.

    `default`, `applies` and `otherwise` depend on the values of the options that come before it in
    their table, and on the arguments that come after it as they were given.

    Attributes:
      name: name of the constructor argument.
      check: function of a value, the name of the flow and that of the option, which returns the
        value or raises; by default any value is taken.
      default: the value of an option that is `None`, or a function that returns it.
      applies: whether the option has an effect; by default always.
      when: when it applies, in words.
      otherwise: the value where it does not apply, or a function that returns it.
    """

    name: str
    check: Check = lambda value, caller, name: value
    default: Any = None
    applies: Callable[[Options], bool] = lambda options: True
    when: str = "always"
    otherwise: Any = None


def resolve(
    table: Sequence[Option], arguments: Mapping[str, Any], caller: str, *, strict: bool = True
) -> dict[str, Any]:
    """Returns the values of all options of a table.

    #### Example

    >>> from tfp_realnvp.bijectors.options import Option, resolve
    >>> table = [
    ...     Option("num_scales", default=2),
    ...     Option("filter_growth", default=2.0, applies=lambda options: options.num_scales > 1,
    ...            when="with several scales", otherwise=1.0)]
    >>> resolve(table, {"num_scales": None, "filter_growth": None}, "Flow")
    {'num_scales': 2, 'filter_growth': 2.0}
    >>> resolve(table, {"num_scales": 1, "filter_growth": None}, "Flow")
    {'num_scales': 1, 'filter_growth': 1.0}

    Args:
      table: the options.
      arguments: the constructor arguments, by name.
      caller: name of the flow, which begins an error.
      strict: whether an option without effect is an error; otherwise it is left out.

    Raises:
      ValueError: if an option is out of range, or it is given and does not apply.
      TypeError: if an option has a wrong type.
    """
    options = types.SimpleNamespace(**arguments)
    for option in table:
        value = getattr(options, option.name)
        if option.applies(options):
            if value is None:
                value = _value(option.default, options)
            value = option.check(value, caller, option.name)
        else:
            otherwise = _value(option.otherwise, options)
            if strict and not (value is None or _is_equal(value, otherwise)):
                raise ValueError(
                    f"{caller}: expected {option.name} only {option.when}, got {value!r}."
                )
            value = otherwise
        setattr(options, option.name, value)
    return {option.name: getattr(options, option.name) for option in table}


def _is_equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except (TypeError, ValueError):  # For example of an array.
        return False


def _value(value: Any, options: Options) -> Any:
    return value(options) if callable(value) else value


def markdown_table(tables: Mapping[str, Sequence[Option]]) -> str:
    """Returns a table of all options, with a column for each flow that says when they apply.

    Args:
      tables: for the name of each flow the table of its options.
    """
    names = dict.fromkeys(option.name for table in tables.values() for option in table)
    words = [{option.name: option.when for option in table} for table in tables.values()]
    rows = [["option", *(f"`{flow}`" for flow in tables)], ["---"] * (1 + len(tables))]
    rows += [[f"`{name}`", *(column.get(name, "") for column in words)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)


def check_integer(at_least: int) -> Check:
    """Returns the check of a whole number."""

    def check(value: Any, caller: str, name: str) -> int:
        expected = f"{caller}: expected {name} of at least {at_least}"
        return validation.integer(value, at_least, expected)

    return check


def check_choice(*choices: str | None) -> Check:
    """Returns the check of a word."""

    def check(value: Any, caller: str, name: str) -> str | None:
        return validation.choice(value, choices, f"{caller}: expected a {name}")

    return check


def check_flag(value: Any, caller: str, name: str) -> bool:
    """Returns a `bool`, or raises."""
    return validation.flag(value, f"{caller}: expected a bool as {name}")
