"""What the build of the lessons does to executed notebooks."""

import copy
from collections.abc import MutableMapping
from typing import Any, TypeVar

WIDGET = "application/vnd.jupyter.widget-view+json"
Notebook = TypeVar("Notebook", bound=MutableMapping[str, Any])


def strip_widgets(notebook: Notebook) -> Notebook:
    """A copy of a notebook (nbformat 4) whose outputs show pictures where they showed widgets.

    A stored widget has no kernel behind it: in a trusted notebook JupyterLab writes "Error displaying widget: model not
    found" in its place, even where the same output holds a picture. So the reference to the widget goes; picture and
    text beside it stay, and so does an output's text where there is no picture. Stored widget state goes too.
    """
    notebook = copy.deepcopy(notebook)
    notebook.get("metadata", {}).pop("widgets", None)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)
            output.get("metadata", {}).pop(WIDGET, None)
    return notebook
