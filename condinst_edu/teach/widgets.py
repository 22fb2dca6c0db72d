"""Widgets of the lessons: thin layers over the plain functions of `condinst_edu.teach.interactive`.

Each shows its static picture where a front end knows no widgets: one output holds both, and the front end takes what it
can show. An output that is stored without its kernel needs `condinst_edu.teach.stored.strip_widgets`.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import anywidget
import ipywidgets
import traitlets
from matplotlib.figure import Figure
from torch import Tensor, nn

from condinst_edu.blendmask import BlendMask
from condinst_edu.teach.blending import Blend, averaged, blends_of, with_attention
from condinst_edu.teach.click_canvas import CSS, ESM
from condinst_edu.teach.interactive import Segment, Targets, describe, describe_targets, look, targets_of
from condinst_edu.teach.pictures import draw_boxes, show_blend, show_targets
from condinst_edu.teach.segment_pictures import (
    data_url,
    figure_png,
    image_png,
    mask_overlay,
    show_segment,
    small_pictures,
)


class WithPicture:
    """A widget whose output also holds `figure()` as a PNG and `text`, for front ends without widgets."""

    text: str

    def figure(self) -> Figure:
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        picture = base64.b64encode(figure_png(self.figure())).decode()
        return {**data, "image/png": picture, "text/plain": self.text}, metadata


# --------------------------------------------------------------------------------------------------- click to segment


class ClickToSegment(WithPicture, anywidget.AnyWidget):
    """An image on which a click, a drag or an arrow key chooses the pixel whose location draws its mask.

    State: x, y, the pixel; level, 0 for the surest or the pyramid's (3 for P3); segment, what `segment_at` gives there;
    text, one line about it. Setting x, y or level does what a click does.
    """

    _esm = ESM
    _css = CSS

    x = traitlets.Int().tag(sync=True)
    y = traitlets.Int().tag(sync=True)
    level = traitlets.Int(0).tag(sync=True)
    levels = traitlets.List(traitlets.Int()).tag(sync=True)
    size = traitlets.List(traitlets.Int()).tag(sync=True)  # (width, height) of the image
    picture = traitlets.Unicode().tag(sync=True)
    overlay = traitlets.Unicode().tag(sync=True)
    location = traitlets.List(traitlets.Float()).tag(sync=True)
    stride = traitlets.Int(8).tag(sync=True)
    panels = traitlets.List(traitlets.Dict()).tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)

    segment: Segment

    def __init__(
        self, model: nn.Module, image: Tensor, x: int | None, y: int | None, class_names: Sequence[str]
    ) -> None:
        self.seen, self.image, self.class_names = look(model, image), image, class_names
        surest = self.seen.surest_pixel()
        x, y = surest[0] if x is None else x, surest[1] if y is None else y
        height, width = self.seen.size
        super().__init__(
            x=x, y=y, levels=list(self.seen.levels), size=[width, height], picture=data_url(image_png(image))
        )
        self._shown: tuple[int, int, int] | None = None
        self._update()
        self.observe(self._update, names=["x", "y", "level"])

    def move(self, x: int, y: int) -> None:
        """Choose the pixel (x, y), as a click does."""
        with self.hold_trait_notifications():
            self.x, self.y = x, y

    def figure(self) -> Figure:
        """The figure of `show_segment` for what is chosen."""
        return show_segment(self.segment, self.image, self.class_names)

    @traitlets.validate("x", "y", "level")
    def _check(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        height, width = self.seen.size
        allowed = {"x": range(width), "y": range(height), "level": (0, *self.seen.levels)}[name]
        if value not in allowed:
            raise traitlets.TraitError(f"{name} must be in {allowed}, not {value}")
        return value

    def _update(self, _: Any = None) -> None:
        chosen = (self.x, self.y, self.level)
        if chosen == self._shown:  # x and y of one click are observed one after the other
            return
        self._shown = chosen
        self.segment = self.seen.segment_at(self.x, self.y, self.level or None)
        with self.hold_sync():  # one message, so that mask and text change together
            self.overlay = data_url(mask_overlay(self.segment.mask))
            self.location, self.stride = list(self.segment.location), self.segment.stride
            pictures = small_pictures(self.segment)
            self.panels = [{"caption": caption, "source": data_url(picture)} for caption, picture in pictures]
            self.text = describe(self.segment, self.class_names)


def click_to_segment(
    model: nn.Module, image: Tensor, x: int | None = None, y: int | None = None, class_names: Sequence[str] = ()
) -> ClickToSegment:
    """A widget on an image (3, H, W) in [0, 1]: a click shows which location answers, and the mask that it draws.

    x, y: the pixel to begin with, by default the surest location's; class_names: of labels 1, 2, ... The plain function
    is `segment_at`. Errors: TypeError for a model that it does not know, TraitError for a pixel off the image.
    """
    return ClickToSegment(model, image, x, y, class_names)


# ---------------------------------------------------------------------------------------------------- explore targets


class ExploreTargets(WithPicture, ipywidgets.VBox):
    """Sliders over `targets_of`: radius, the levels' strides, the ends of their ranges; found: what it returned."""

    found: Targets

    def __init__(
        self,
        image: Tensor,
        target: Mapping[str, Any],
        strides: Sequence[int],
        ranges: Sequence[float],
        radius: float,
        center: Literal["box", "mass"],
    ) -> None:
        self.image, self.target, self.center, self.strides = image, target, center, tuple(strides)
        style, wide = {"description_width": "14em"}, ipywidgets.Layout(width="34em")
        self.radius = ipywidgets.FloatSlider(
            radius, min=0, max=4, step=0.25, description="centre radius (strides)", style=style, layout=wide
        )
        # Neighbouring levels only: a pyramid has no holes.
        count = len(strides)
        runs = [self.strides[i:j] for i in range(count) for j in range(count, i, -1)]
        options = [("strides " + ", ".join(map(str, run)), run) for run in sorted(runs, key=len, reverse=True)]
        self.levels = ipywidgets.Dropdown(options=options, description="levels", style=style, layout=wide)
        side = max(image.shape[1:])
        self.ends = [
            ipywidgets.IntSlider(
                end, min=1, max=max(side, int(end)), description=f"stride {s} up to (pixels)", style=style, layout=wide
            )
            for s, end in zip(strides, ranges, strict=False)
        ]
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
        self.line = ipywidgets.HTML()
        self._update()
        controls = [self.levels, *self.ends, self.radius]
        super().__init__([*controls, self.line, self.picture])
        for control in controls:
            control.observe(self._update, names="value")

    @property
    def text(self) -> str:  # type: ignore[override]
        """Counts of the targets that are shown."""
        return describe_targets(self.found)

    def figure(self) -> Figure:
        """The figure of `show_targets` for what is chosen, with the boxes."""
        figure = show_targets(self.image, self.found.points, self.found.assignment)
        for ax in figure.axes:
            draw_boxes(ax, self.target["boxes"])
        return figure

    def _update(self, _: Any = None) -> None:
        strides = self.levels.value
        first = self.strides.index(strides[0])
        inner = self.ends[first : first + len(strides) - 1]
        for i, end in enumerate(self.ends):
            end.disabled = not first <= i < first + len(inner)
        try:
            ends = [end.value for end in inner]
            self.found = targets_of(self.image, self.target, strides, ends, self.radius.value, self.center)
        except ValueError as error:  # ends that do not rise: the picture stays as it was
            self.line.value = f'<p role="status">{error}</p>'
            return
        self.picture.value = figure_png(self.figure())
        self.line.value = f'<p role="status">{self.text}</p>'


def explore_targets(
    image: Tensor,
    target: Mapping[str, Any],
    strides: Sequence[int] = (8, 16, 32),
    ranges: Sequence[float] = (32, 64),
    radius: float = 1.5,
    center: Literal["box", "mass"] = "box",
) -> ExploreTargets:
    """A widget on an image (3, H, W) and its target: which locations answer for which object, and how many for none.

    The arguments are those of `targets_of`, the plain function; the sliders begin at them.
    """
    return ExploreTargets(image, target, strides, ranges, radius, center)


# ------------------------------------------------------------------------------------------------------ explore blend


class ExploreBlend(WithPicture, ipywidgets.VBox):
    """Sliders: which instance of `blends_of`, and to how many cells its attention is averaged; blend: what is shown."""

    blend: Blend

    def __init__(self, model: BlendMask, image: Tensor, class_names: Sequence[str]) -> None:
        self.image, self.class_names = image, class_names
        self.found = blends_of(model, image)[:20]
        if not self.found:
            raise ValueError("the model finds nothing on this image")
        side = self.found[0].attention.shape[-1]
        style, wide = {"description_width": "14em"}, ipywidgets.Layout(width="34em")
        self.instance = ipywidgets.IntSlider(
            0, min=0, max=len(self.found) - 1, description="instance, surest first", style=style, layout=wide
        )
        self.cells = ipywidgets.IntSlider(
            side, min=1, max=side, description="cells along a side", style=style, layout=wide
        )
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
        self.line = ipywidgets.HTML()
        self._update()
        super().__init__([self.instance, self.cells, self.line, self.picture])
        for control in (self.instance, self.cells):
            control.observe(self._update, names="value")

    @property
    def text(self) -> str:  # type: ignore[override]
        """One line: "ring 0.87, attention of 7 x 7, mask 612 pixels"."""
        label, cells = self.blend.label, self.cells.value
        name = self.class_names[label - 1] if label <= len(self.class_names) else f"class {label}"
        return (
            f"{name} {self.blend.score:.2f}, attention of {cells} x {cells}, mask {int(self.blend.mask.sum())} pixels"
        )

    def figure(self) -> Figure:
        """The figure of `show_blend` for what is chosen."""
        return show_blend(self.image, self.blend, f"{self.cells.value} x {self.cells.value}")

    def _update(self, _: Any = None) -> None:
        chosen = self.found[self.instance.value]
        self.blend = with_attention(chosen, averaged(chosen.attention, self.cells.value))
        self.picture.value = figure_png(self.figure())
        self.line.value = f'<p role="status">{self.text}</p>'


def explore_blend(model: BlendMask, image: Tensor, class_names: Sequence[str] = ()) -> ExploreBlend:
    """A widget on an image (3, H, W) in [0, 1]: how BlendMask mixes an instance's mask, with a coarser attention too.

    class_names: of labels 1, 2, ... The plain functions are `blends_of`, `with_attention` and `averaged` of
    `condinst_edu.teach.blending`. Errors: ValueError where the model finds nothing.
    """
    return ExploreBlend(model, image, class_names)
