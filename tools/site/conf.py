"""Sphinx's settings for the site; tools/site/build.py stages the sources and runs it."""

import importlib.metadata
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import condinst_edu
from condinst_edu.papers import ITEMS

HERE = Path(__file__).resolve().parent

project = "condinst_edu"
version = release = condinst_edu.__version__
copyright = "the condinst_edu authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
templates_path: list[str] = []
nitpicky = False
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]

# Notebooks as they are stored: nothing runs. What is folded in JupyterLab is folded here.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline"]
myst_heading_anchors = 4
nb_render_text_lexer = "none"
nb_execution_show_tb = False

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "condinst_edu"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # a page that is opened as a file may not fetch others
html_show_sphinx = False
html_extra_path = ["../../build/site-slides"]
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7db7f5", "color-brand-content": "#7db7f5"},
}

MATHJAX = "tex-svg-full.js"  # one file with its glyphs: works from a folder, without a server
mathjax_path = MATHJAX
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}


def copy_mathjax(app: Sphinx) -> None:
    """Put MathJax, which comes with a Python package, beside the pages."""
    package = importlib.metadata.distribution("sphinx-mathjax-offline")
    source = Path(str(package.locate_file("sphinx-mathjax-offline/static/mathjax"))) / MATHJAX
    target = Path(app.outdir) / "_static" / MATHJAX
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def not_ours(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a class is given by a library, as matplotlib gives its artists `set`."""
    home = getattr(obj, "__module__", None) or "condinst_edu"
    return None if home.startswith("condinst_edu") else True


def as_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code` in single backticks; this makes reStructuredText of them."""
    made: list[str] = []
    for line in lines:
        indented, before = line.startswith("    "), made[-1] if made else ""
        if indented and made and not before.startswith("    "):
            made += ["", "::", ""]  # an indented block is a command, code or a formula
        elif before.startswith("    ") and line and not indented:
            made.append("")
        made.append(line if indented else as_rst_line(line))
    lines[:] = made


def as_rst_line(line: str) -> str:
    parts = re.split(r"(`[^`]+`)", line)
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    parts[::2] = [re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


class CellAnchors(SphinxTransform):
    """Gives a notebook's cells their ids, so that plans for class can link to them."""

    default_priority = 210

    def apply(self, **kwargs: Any) -> None:
        for cell in self.document.findall(nodes.container):
            if name := cell.get("cell_metadata", {}).get("cell_id"):
                cell["ids"].append(name)


class LinkCode(SphinxTransform):
    """Makes links of `condinst:eq-2` (to its place in the list of what is where) and of `condinst_edu.fcos.FCOS`."""

    default_priority = 200

    def apply(self, **kwargs: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            text = literal.astext()
            if isinstance(literal.parent, (nodes.reference, pending_xref, nodes.title)):
                continue
            if text in ITEMS:
                link = pending_xref(
                    "", refdomain="std", reftype="ref", reftarget=anchor(text), refexplicit=True, refwarn=False
                )
            elif re.fullmatch(r"condinst_edu(\.\w+)+", text):
                link = pending_xref("", refdomain="py", reftype="obj", reftarget=text, refexplicit=True, refwarn=False)
            else:
                continue
            link["refdoc"] = self.env.docname
            literal.replace_self(link)
            link += literal


def anchor(name: str) -> str:
    """The label of a paper's item on the pages that `pages.py` writes."""
    return name.replace(":", "-")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", copy_mathjax)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-skip-member", not_ours)
    app.add_transform(CellAnchors)
    app.add_transform(LinkCode)
