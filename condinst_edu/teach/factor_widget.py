"""The widget of lesson 6: change an instance's attention factors and see its maps and its mask."""

from collections.abc import Sequence
from typing import Any

import ipywidgets
from matplotlib.figure import Figure
from torch import Tensor

from condinst_edu.dr1mask import DR1Mask
from condinst_edu.teach.factoring import Factored, factored_of, show_factored, with_factors
from condinst_edu.teach.segment_pictures import figure_png
from condinst_edu.teach.widgets import WithPicture


class ChangeFactors(WithPicture, ipywidgets.VBox):
    """Sliders over `with_factors`: which instance, which of its factors s_kd, and what it is multiplied by.

    instances: of the image, by falling score; changed: the one that is shown, with its factor changed.
    """

    changed: Factored

    def __init__(self, model: DR1Mask, image: Tensor, class_names: Sequence[str]) -> None:
        self.model, self.image, self.class_names = model, image, class_names
        self.instances = factored_of(model, image)
        if not self.instances:
            raise ValueError("the model finds nothing on this image")
        bases, rank = self.instances[0].factors.shape
        wide = ipywidgets.Layout(width="30em")
        self.instance = ipywidgets.IntSlider(
            0, 0, min(len(self.instances), 20) - 1, description="instance", layout=wide
        )
        self.base = ipywidgets.IntSlider(1, 1, bases, description="k", layout=wide)
        self.part = ipywidgets.IntSlider(1, 1, rank, description="d", layout=wide)
        self.times = ipywidgets.FloatSlider(1, min=-5, max=5, step=0.5, description="times", layout=wide)
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
        self.line = ipywidgets.HTML()
        self._update()
        controls = [self.instance, self.base, self.part, self.times]
        super().__init__([*controls, self.line, self.picture])
        for control in controls:
            control.observe(self._update, names="value")

    @property
    def text(self) -> str:  # type: ignore[override]
        """The factor that is changed, and the size of the mask."""
        k, d = self.base.value, self.part.value
        value = float(self.changed.factors[k - 1, d - 1])
        return f"s_{k}{d} = {value:.2f}, the mask has {int(self.changed.mask.sum())} pixels"

    def figure(self) -> Figure:
        """The instance as it is over what the change makes of it."""
        return show_factored(self.image, [self.instances[self.instance.value], self.changed], self.class_names)

    def _update(self, _: Any = None) -> None:
        instance = self.instances[self.instance.value]
        factors = instance.factors.clone()
        factors[self.base.value - 1, self.part.value - 1] *= self.times.value
        self.changed = with_factors(self.model, instance, factors)
        self.picture.value = figure_png(self.figure())
        self.line.value = f'<p role="status">{self.text}</p>'


def change_factors(model: DR1Mask, image: Tensor, class_names: Sequence[str] = ()) -> ChangeFactors:
    """A widget on an image (3, H, W): the attention factors of an instance; see `with_factors`, the plain function."""
    return ChangeFactors(model, image, class_names)
