"""Converts docstrings from Markdown with Google sections, as in TFP, to reStructuredText."""

import inspect
import pprint
import re
from collections.abc import Mapping
from typing import Any

from sphinx.util.inspect import stringify_signature


def markdown_to_rst(text: str) -> str:
    """Converts the headings, tables, fenced blocks and code of a docstring."""
    # The items alternate: prose, the indentation of a fenced block, the block, prose, and so on.
    parts = re.split(r"^( *)```\w*\n(.*?)^ *``` *$", text, flags=re.MULTILINE | re.DOTALL)
    converted = [_prose(part) for part in parts[::3]]
    for i, (indent, block) in enumerate(zip(parts[1::3], parts[2::3], strict=True)):
        block = re.sub(r"^(?=.)", "   ", block, flags=re.MULTILINE)
        converted[i] += f"{indent}.. code-block:: text\n\n{block}"
    return "".join(converted)


def _prose(text: str) -> str:
    text = re.sub(r"(?:^ *\|.*\|\n?)+", _table, text, flags=re.MULTILINE)
    text = re.sub(r"^( *)#### (.*)$", r"\1.. rubric:: \2\n", text, flags=re.MULTILINE)
    # Napoleon reads text before a colon as a type. A leading colon makes the type empty.
    text = re.sub(r"^( *Returns:\n +)(?=\S)", r"\1: ", text, flags=re.MULTILINE)
    pieces = re.split(r"((?<![`:])`[^`]+`(?!`))", text)
    # Escape |x| and *x: reStructuredText reads |x| as a substitution and *x as emphasis.
    special = r"\|(?=\S)|\*(?=\S)(?![^*\n]+\*(?!\w))"
    pieces[::2] = [re.sub(special, r"\\\g<0>", piece) for piece in pieces[::2]]
    pieces[1::2] = [f"``{' '.join(piece[1:-1].split())}``" for piece in pieces[1::2]]
    return "".join(pieces)


def _table(match: re.Match[str]) -> str:
    indent = re.match(" *", match[0])[0]
    rows = [re.split(r"(?<!\\)\|", row.strip()[1:-1]) for row in match[0].strip().split("\n")]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows[:1] + rows[2:]:
        lines += [f"   {'-' if i else '* -'} {cell.strip()}" for i, cell in enumerate(row)]
    lines = [line if line.startswith(("   *", "   :", "..")) else f"  {line}" for line in lines]
    return "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)


def connect(app: Any, constants: Mapping[str, str]) -> None:
    """Converts the docstrings that autodoc reads, before Napoleon parses their sections.

    Args:
      app: the Sphinx application.
      constants: the descriptions of public constants by their full names.
    """

    def convert(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        del app, options
        text = "\n".join(lines)
        if name in constants:
            text = constants[name]
            if isinstance(obj, dict):
                text += f"\n\n```\n{pprint.pformat(obj, width=90)}\n```"
        elif what == "class" and not getattr(obj.__init__, "__module__", "tfp_realnvp").startswith(
            "tfp_realnvp"
        ):
            text = inspect.getdoc(obj)  # omits the docstring of TFP's constructor
        # Napoleon reads text before a colon as a type. A leading colon makes the type empty.
        prefix = ": " if what in ("attribute", "data", "property") else ""
        lines[:] = (prefix + markdown_to_rst(text)).split("\n")

    def constructor(
        app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
    ) -> tuple[str, str]:
        del app, name, options
        if what == "class" and signature == "(*args, **kwargs)":  # of `keras.Model.__new__`
            _, *parameters = inspect.signature(obj.__init__).parameters.values()
            signature = stringify_signature(inspect.Signature(parameters), show_annotation=False)
        return signature, returns

    app.connect("autodoc-process-docstring", convert, priority=400)
    app.connect("autodoc-process-signature", constructor)
