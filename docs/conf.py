"""Configures Sphinx for the site, which `make docs` builds. Pages load nothing from the network."""

import importlib.metadata
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref

import tfp_realnvp as tfr

sys.path.insert(0, str(Path(__file__).parent))
import docstrings

project = "tfp_realnvp"
author = "The authors of tfp_realnvp"
version = release = importlib.metadata.version("tfp_realnvp")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
]
# The only notebooks are the tutorials, which are Python scripts with cells.
include_patterns = ["*.md", "*.rst", "api/*.rst", "tutorials/*.md", "tutorials/*.py"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
nitpicky = True
# Skip names that have no page on this site: names of other libraries, and internal types.
nitpick_ignore_regex = [
    ("py:.*", r"(?!tfp_realnvp\.).*"),
    ("py:class", r"tfp_realnvp\.(internal|bijectors\.passes)\..*"),
]

html_theme = "furo"
html_title = project
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

# Turn off the menu of MathJax, which loads accessibility tools from the network.
mathjax3_config = {"options": {"enableMenu": False}}

nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1800  # seconds per cell
nb_merge_streams = True
nb_output_stderr = "remove"  # the log of TensorFlow
nb_ipywidgets_js = {}

autosummary_generate_overwrite = True
autosummary_imported_members = True
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False  # one description may cover several arguments
maximum_signature_line_length = 90

# Maps files outside of `docs/` to the pages that include them.
_PAGES = {
    "README.md": "index.md",
    "BUILD.md": "how_it_works.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "gallery.md",
}
# Maps names in texts to the full names of public objects: `FlowModel`, `tfr.log_prob`,
# `latents.encode`. A single lower-case name may also mean an argument or a method.
_PUBLIC = [*tfr.__all__, "FlowDensity", "FlowRegressor"] + [
    f"{module}.{name}"
    for module in ("data", "evaluation", "latents", "outliers", "plots")
    for name in getattr(tfr, module).__all__
]
_REFERENCES = {
    **{f"tfr.{name}": f"tfp_realnvp.{name}" for name in _PUBLIC},
    **{name: f"tfp_realnvp.{name}" for name in _PUBLIC if name[0].isupper() or "." in name},
}
# Descriptions of public dictionaries, which have no docstrings.
_CONSTANTS = {
    "tfp_realnvp.PAPER_CONFIGURATIONS": "Arguments of `RealNVPImage` by dataset of the paper.",
}


def relocate_links(folder: str, content: list[str]) -> None:
    """Rewrites relative links and image paths of a file so that they work from `docs/`.

    Args:
      folder: the folder of the file, relative to `docs/`.
      content: a list with the text of the file, which the function replaces.
    """

    def relocate(match: re.Match[str]) -> str:
        start, target, end = match.groups()
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        is_page = path.startswith("docs/")
        page = path.removeprefix("docs/") if is_page else _PAGES.get(path, f"../{path}")
        return f"{start}{page}{end}"

    pattern = r'(\]\(|src=")(?!https?:|#)([^)"#]+)([)"#])'
    content[0] = re.sub(pattern, relocate, content[0])


def relocate_links_of_page(app: Any, docname: str, content: list[str]) -> None:
    """Relocates the links in a page of `docs/`."""
    if "/" not in docname:
        relocate_links("", content)


def relocate_links_of_included_file(app: Any, path: Path, docname: str, content: list[str]) -> None:
    """Relocates the links in a file of another folder that a page includes."""
    relocate_links(path.parent.as_posix(), content)
    # Formats the commands of model cards as code, so that two dashes do not become one.
    content[0] = re.sub(r"(?m)^\| command \| (.*) \|$", r"| command | `\1` |", content[0])


def link_public_names(app: Any, doctree: nodes.document) -> None:
    """Links names of public objects, and calls of public functions, to their pages."""
    for node in list(doctree.findall(nodes.literal)):
        target = _REFERENCES.get(node.astext().partition("(")[0])
        if target and not isinstance(node.parent, (nodes.title, nodes.reference, pending_xref)):
            options = {"refdomain": "py", "reftype": "obj", "reftarget": target}
            link = pending_xref("", node.deepcopy(), refdoc=app.env.docname, **options)
            node.replace_self(link)


def setup(app: Any) -> None:
    """Connects the functions of this file to the events of Sphinx."""
    app.connect("source-read", relocate_links_of_page)
    app.connect("include-read", relocate_links_of_included_file)
    app.connect("doctree-read", link_public_names)
    docstrings.connect(app, _CONSTANTS)
