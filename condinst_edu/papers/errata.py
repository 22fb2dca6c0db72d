"""Where a paper contradicts itself: each entry says where, what the paper says, what we find, and brings a witness.

A witness is a function without arguments that works the contradiction out anew, from the papers' tables as data or by
arithmetic, and returns whether the finding holds.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from condinst_edu.papers import witnesses
from condinst_edu.papers.forms import anchor

Status = Literal["confirmed", "refuted", "we differ", "open"]


@dataclass(frozen=True)
class Erratum:
    """One place in a paper.

    status: the contradiction is "confirmed", "refuted" (there is none) or "open" (the paper alone cannot tell);
    "we differ": the paper may be right for itself, and the project does otherwise.
    """

    id: str
    items: tuple[str, ...]
    """Ids of what it concerns."""
    where: str
    says: str
    """What the paper says, in our words."""
    finding: str
    status: Status
    witness: Callable[[], bool]


ENTRIES = (
    Erratum(
        id="condinst:section-3.4",
        items=("condinst:table-4",),
        where="section 3.4, beside Table 4",
        says="Upsampling by 4 raises the AP from 34.6 to 35.6, and APs from 15.6 to 18.0.",
        finding=(
            "The factor must be 2: AP is 35.6 at 2 and at 4, but APs is 18.0 at 2 and 16.9 at 4, which the next"
            " sentence says itself. The conference version has 2 in this place."
        ),
        status="confirmed",
        witness=witnesses.factor_of_small_objects,
    ),
    Erratum(
        id="condinst:table-1a-1b",
        items=("condinst:table-1a", "condinst:table-1b"),
        where="Table 1a, the row of depth 3, and Table 1b, the row of width 8",
        says="One and the same model has an APm of 38.9 in one table and of 39.1 in the other.",
        finding="39.1 is also what Tables 2 to 5 give for this model; all its other figures agree everywhere.",
        status="confirmed",
        witness=witnesses.default_model_differs,
    ),
    Erratum(
        id="condinst:table-3-caption",
        items=("condinst:table-3", "condinst-eccv:table-3"),
        where="the caption of Table 3",
        says="Without relative coordinates the AP falls from 35.7 to 31.4.",
        finding="The rows have 35.6 and 31.5; 35.7 and 31.4 are the rows of the conference version.",
        status="confirmed",
        witness=witnesses.caption_of_conference,
    ),
    Erratum(
        id="condinst:section-3.3",
        items=("condinst:table-3", "condinst-eccv:table-3"),
        where="section 3.3 of both versions",
        says="It cites the second row of Table 3 for the AP without relative coordinates and for that with them alone.",
        finding=(
            "The first row is the one without relative coordinates (31.5; 31.4 in the conference), the second has"
            " nothing else (31.3)."
        ),
        status="confirmed",
        witness=witnesses.row_of_table_3,
    ),
    Erratum(
        id="condinst:section-3.6",
        items=("condinst:table-6", "condinst-eccv:table-6"),
        where="section 3.6, beside Table 6",
        says="CondInst's AP is 35.4, 37.8, 38.8 and 40.1 in the text.",
        finding="The rows have 35.3, 37.7, 38.6 and 40.0; the text has the figures of the conference version.",
        status="confirmed",
        witness=witnesses.text_of_conference,
    ),
    Erratum(
        id="condinst:table-9-rows",
        items=("condinst:table-9",),
        where="Table 9",
        says="Unifying with R-50 and Axial-DeepLab both have 43.6, 48.9 and 35.6.",
        finding="Two methods with other backbones agree in all three figures; the paper does not show which is right.",
        status="confirmed",
        witness=witnesses.identical_rows,
    ),
    Erratum(
        id="condinst:section-3.9",
        items=("condinst:table-9",),
        where="section 3.9, beside Table 9",
        says='CondInst is considerably ahead of Unifying and of "Panoptic-FPN [25]".',
        finding=(
            "[25] is Panoptic-FCN. With equal backbones CondInst is 0.6 to 0.7 PQ ahead of both, and 1.9 to 3.2"
            " behind in stuff."
        ),
        status="confirmed",
        witness=witnesses.panoptic_fcn_is_no_panoptic_fpn,
    ),
    Erratum(
        id="condinst:eq-2-classes",
        items=("condinst:eq-2",),
        where="section 2.3, below Eq. 2",
        says="The true mask M* has a number for each pixel and each of C classes.",
        finding="A mask has no class axis: section 2.1 gives it one number per pixel, as the mask head predicts.",
        status="confirmed",
        witness=witnesses.mask_without_a_class_axis,
    ),
    Erratum(
        id="condinst:section-2.5",
        items=("condinst:panoptic-branch",),
        where="section 2.5",
        says="The semantic branch has Panoptic-FPN's structure: the four levels are concatenated.",
        finding=(
            "Panoptic-FPN adds its levels, behind convolutions with norms; the text names none of these. Which one was"
            " used cannot be told. Here are both, and the text's words are the default."
        ),
        status="open",
        witness=witnesses.concatenation_is_no_sum,
    ),
    Erratum(
        id="condinst:section-2.2",
        items=("condinst:controller",),
        where="section 2.2, beside the official code",
        says="The controller head has the architecture of the classification head.",
        finding="In the official code, and here, it has no tower of its own: it is one convolution on the box tower.",
        status="we differ",
        witness=witnesses.controller_reads_the_box_tower,
    ),
    Erratum(
        id="condinst:section-2.1",
        items=("condinst:bottom-branch",),
        where="section 2.1, beside the official code",
        says="P4 and P5 are upsampled and added to P3 as they are.",
        finding="In the official code, and here, each level goes through a convolution to 128 channels first.",
        status="we differ",
        witness=witnesses.levels_are_refined_before_the_sum,
    ),
    Erratum(
        id="dr1mask:eq-3-4",
        items=("dr1mask:eq-3", "dr1mask:eq-4"),
        where="Eq. 3 beside Eq. 4, section 3.1",
        says="Eq. 4 computes Eq. 3 on the whole map, in parallel.",
        finding=(
            "Eq. 3 multiplies by B at (h - j, w - k), inside the sum, Eq. 4 by B at (h, w), after it: they agree for"
            " 1x1 kernels only. Eq. 4 is what the text describes (before and after the convolution), and what we do."
        ),
        status="confirmed",
        witness=witnesses.equation_3_is_not_equation_4,
    ),
    Erratum(
        id="dr1mask:equation-3.1",
        items=("dr1mask:eq-1", "dr1mask:eq-4", "dr1mask:eq-5"),
        where="sections 3.1, 3.2.1 and 4.2",
        says='It cites "Equation 3.1" and "Figure 3.1" for A and B, and "Equation (2)" for what DR1Conv extends.',
        finding=(
            "3.1 is the section of DR1Conv: Eq. 4 and Figure 1 are meant. What is extended is the formula after Eq. 1,"
            " which has no number; Eq. 2 comes after the reference to it."
        ),
        status="confirmed",
        witness=witnesses.sections_that_are_no_equations,
    ),
    Erratum(
        id="dr1mask:kernel-shape",
        items=("dr1mask:eq-2",),
        where="section 3.1, above Eq. 2",
        says="The dynamic kernel W'_hw of a position has C numbers.",
        finding="It maps C channels to C channels: C x C numbers, made from the 2 C of a_hw and b_hw.",
        status="confirmed",
        witness=witnesses.kernel_of_a_position,
    ),
    Erratum(
        id="dr1mask:crops",
        items=("dr1mask:eq-7", "dr1mask:eq-8"),
        where="section 3.2.3",
        says="Crops are D x 56 x 56, then D x 56 x 65; Q is multiplied with R.",
        finding="65 is a slip of 56. Q has K channels, as R' of Eq. 7 has; R has D: it is Q times R'.",
        status="confirmed",
        witness=witnesses.crops_and_attention,
    ),
    Erratum(
        id="dr1mask:upsampling",
        items=("dr1mask:aligned-upsampling",),
        where="section 4.2, beside the official code of the same authors",
        says="The upsampling is aligned with the downsampling of strided convolutions.",
        finding=(
            "The aligned upsampling of their published code is not: it lands one fine cell further right and down. Ours"
            " follows the paper's words; which of the two gave Table 5 cannot be told, since the code is not published."
        ),
        status="open",
        witness=witnesses.strided_convolutions_and_upsampling,
    ),
    Erratum(
        id="dr1mask:table-5-stuff",
        items=("dr1mask:table-5", "dr1mask:aligned-upsampling"),
        where="section 4.2, beside Table 5",
        says="Aligned upsampling pads least and is significantly better in PQ for stuff.",
        finding="It is 1.1 ahead of padding to 32 and 0.1 behind padding to 128, which has the best figure, 30.0.",
        status="confirmed",
        witness=witnesses.aligned_beside_128,
    ),
    Erratum(
        id="dr1mask:output-stride",
        items=("dr1mask:eq-6",),
        where="Eq. 6, beside section 4.2",
        says="The last step of Eq. 6 is F_3, of P3's size; the output stride is 4.",
        finding="P3 has stride 8: the text's doubling of each step's result must come after the last one too, as here.",
        status="confirmed",
        witness=witnesses.stride_of_the_last_step,
    ),
    Erratum(
        id="dr1mask:abstract",
        items=("dr1mask:table-8",),
        where="the abstract, beside Table 8",
        says="DR1Mask is 10 % faster than BlendMask and 1 point of AP better.",
        finding=(
            "69 to 73 ms and 89 to 94 ms are 5 % less (section 3.2.2 says 6 %); 38.3 to 38.1 and 39.8 to 39.6 AP are"
            " 0.2 points."
        ),
        status="confirmed",
        witness=witnesses.faster_and_better_than_blendmask,
    ),
    Erratum(
        id="dr1mask:section-4.3",
        items=("dr1mask:table-8", "dr1mask:table-9"),
        where="section 4.3, beside Tables 8 and 9",
        says="DR1Mask has the best results of all methods in both tables.",
        finding="CondInst is ahead in AP with either backbone; SOGNet (R-50) and UPSNet* (R-101) are ahead in PQ.",
        status="confirmed",
        witness=witnesses.best_among_all,
    ),
    Erratum(
        id="dr1mask:table-6-gain",
        items=("dr1mask:table-6",),
        where="section 4.2, beside Table 6",
        says="Going from 32 to 64 channels adds 2.1 PQ for stuff.",
        finding="The rows, 30.7 and 32.9, differ by 2.2; figures before rounding may just have differed by 2.1.",
        status="open",
        witness=witnesses.gain_of_width,
    ),
    Erratum(
        id="dr1mask:table-1-gain",
        items=("dr1mask:table-1",),
        where="section 4.2, beside Table 1",
        says="A and B each improve AP50 and AP75 slightly.",
        finding="A alone leaves AP75 at 36.8.",
        status="confirmed",
        witness=witnesses.factor_a_alone,
    ),
    Erratum(
        id="dr1mask:section-3.2.3",
        items=("dr1mask:eq-7", "dr1mask:eq-8"),
        where="section 3.2.3",
        says="Factored attention takes the embedding of an instance from 784 parameters to 16.",
        finding="16 are the factors s alone; the embedding also carries the D K weights t: 144 with D = 32, K = 4.",
        status="confirmed",
        witness=witnesses.embedding_of_factored_attention,
    ),
    Erratum(
        id="adaptis:section-7",
        items=("adaptis:table-4", "adaptis:table-6"),
        where="section 7",
        says="It cites Table 6 for Mapillary test-dev and Table 4 for COCO test-dev.",
        finding="Table 4 is Mapillary's leaderboard, Table 6 is COCO's.",
        status="confirmed",
        witness=witnesses.test_dev_tables_swapped,
    ),
    Erratum(
        id="adaptis:section-5",
        items=("adaptis:class-of-mask",),
        where="section 5",
        says="The class of a mask has the highest average confidence; the formula takes the largest sum.",
        finding="Both give the same class: the mask's area divides all sums alike.",
        status="refuted",
        witness=witnesses.average_and_sum_agree,
    ),
    Erratum(
        id="adaptis:section-5-classes",
        items=("adaptis:class-of-mask",),
        where="section 5, beside the official code",
        says="The class of a mask is chosen among all classes, those of stuff too.",
        finding="In the official code, and here, it is chosen among things: a mask of a point is of no stuff.",
        status="we differ",
        witness=witnesses.class_among_all_or_things,
    ),
    Erratum(
        id="adaptis:section-7-backbones",
        items=("adaptis:table-3", "adaptis:table-5"),
        where="section 7, beside Tables 3 and 5",
        says="On Mapillary and on COCO only the ResNeXt-101 model is trained.",
        finding="Both tables also have AdaptIS with ResNet-50 and ResNet-101.",
        status="confirmed",
        witness=witnesses.backbones_of_the_tables,
    ),
    Erratum(
        id="adaptis:radius",
        items=("adaptis:relative-coordconv", "adaptis:toy-data"),
        where="section 7, beside section 6",
        says="R is 280 pixels in all experiments.",
        finding=(
            "On the 96 pixels of the toy problem no coordinate would pass 0.34. The published toy code has 42, and so"
            " has ours; 280 is for photographs."
        ),
        status="we differ",
        witness=witnesses.radius_of_the_toy_problem,
    ),
    Erratum(
        id="adaptis:toy-colours",
        items=("adaptis:toy-data",),
        where="section 6, beside the authors' images",
        says="The toy problem's cells are blue with a red boundary.",
        finding="In the authors' images they are red with a blue one, and so they are here.",
        status="we differ",
        witness=witnesses.colours_of_the_cells,
    ),
    Erratum(
        id="adaptis:appendix-a",
        items=("adaptis:nfl",),
        where="appendix A",
        says="The total gradient of NFL equals that of BCE.",
        finding=(
            "What is fixed is the sum of the pixels' weights, to 1 as printed, and only with P held constant; the sums"
            " of the gradients on the logits differ, with weights that sum to the number of pixels too."
        ),
        status="confirmed",
        witness=witnesses.weights_and_gradients_of_nfl,
    ),
    Erratum(
        id="slides:blendmask-cost",
        items=("slides:blendmask-blender",),
        where="the slide on why not R-CNN",
        says="BlendMask takes less than 10K operations for a mask.",
        finding="Weighing 4 bases of 56x56 alone takes 12 544 products. Beside 0.7 G of Mask R-CNN it changes nothing.",
        status="confirmed",
        witness=witnesses.products_of_the_blender,
    ),
)

ERRATA: dict[str, Erratum] = {entry.id: entry for entry in ENTRIES}


def page() -> str:
    """All errata as a page in Markdown."""
    lines = [
        "# Errata",
        "",
        "Where a paper contradicts itself, or we do otherwise. Each entry has a witness, a function that works it out",
        "anew; the tests run all of them.",
        "",
        "| where | says | status |",
        "|---|---|---|",
        *(f"| [{e.id}](#{anchor(e.id)}) | {e.says} | {e.status} |" for e in ENTRIES),
    ]
    for entry in ENTRIES:
        concerns = ", ".join(f"`{id}`" for id in entry.items)
        lines += ["", f"## {entry.id}", "", f"{entry.where[0].upper()}{entry.where[1:]}. {entry.says}", ""]
        lines += [f"**{entry.status}**: {entry.finding}", "", f"Concerns {concerns}. The witness:", ""]
        lines += ["```python", inspect.getsource(entry.witness).rstrip(), "```"]
    return "\n".join(lines) + "\n"
