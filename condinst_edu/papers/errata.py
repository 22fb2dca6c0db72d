"""Where a paper contradicts itself: each entry says where, what the paper says, what we find, and brings a witness.

A witness is a function without arguments that works the contradiction out anew, from the papers' tables as data or by
arithmetic, and returns whether the finding holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Literal

from condinst_edu.papers.tables import TABLES

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


def factor_of_small_objects() -> bool:
    """AP 35.6 stands at factors 2 and 4 alike; APs 18.0, which the text gives with it, stands at 2 only."""
    table = TABLES["condinst:table-4"]
    gain = [table.value("AP", factor=factor) - table.value("AP", factor=1) for factor in (2, 4)]
    small = [table.value("APs", factor=factor) for factor in (1, 2, 4)]
    return [round(g, 1) for g in gain] == [1.0, 1.0] and small == [15.6, 18.0, 16.9]


def default_model_differs() -> bool:
    """Depth 3 and width 8 is the default model: five tables give its APm as 39.1, one as 38.9, all else is the same."""
    rows = [
        TABLES["condinst:table-1a"].find(depth=3),
        TABLES["condinst:table-1b"].find(width=8),
        TABLES["condinst:table-2"].find(C_bottom=8),
        TABLES["condinst:table-3"].find(relative=True, features=True),
        TABLES["condinst:table-4"].find(factor=2),
        TABLES["condinst:table-5"].find(NMS="box"),
    ]
    medium = [row["APm"] for (row,) in rows]
    others = {tuple(row[name] for name in ("AP", "AP50", "AP75", "APs", "APl")) for (row,) in rows}
    return medium == [38.9, 39.1, 39.1, 39.1, 39.1, 39.1] and len(others) == 1


def caption_of_conference() -> bool:
    """35.7 and 31.4, of the caption, are rows of the conference version's table and not of the journal's."""
    pair = [
        [table.value("AP", absolute=False, relative=relative, features=True) for relative in (True, False)]
        for table in (TABLES["condinst:table-3"], TABLES["condinst-eccv:table-3"])
    ]
    return pair == [[35.6, 31.5], [35.7, 31.4]]


def text_of_conference() -> bool:
    """35.4, 37.8, 38.8 and 40.1, of the text, are rows of the conference version's table and not of the journal's."""
    places = (
        ("CondInst", "R-50-FPN", False, "1x"),
        ("CondInst", "R-50-FPN", True, "3x"),
        ("CondInst w/ sem.", "R-50-FPN", True, "3x"),
        ("CondInst w/ sem.", "R-101-FPN", True, "3x"),
    )
    found = [
        [TABLES[id].value("AP", method=m, backbone=b, augmented=a, schedule=s) for m, b, a, s in places]
        for id in ("condinst:table-6", "condinst-eccv:table-6")
    ]
    return found == [[35.3, 37.7, 38.6, 40.0], [35.4, 37.8, 38.8, 40.1]]


def row_of_table_3() -> bool:
    """31.5, without relative coordinates, is the first row; 31.3, relative coordinates alone, is the second."""
    first, second = (TABLES["condinst:table-3"].row(i) for i in (0, 1))
    return (first["AP"], first["relative"]) == (31.5, False) and (second["AP"], second["features"]) == (31.3, False)


def identical_rows() -> bool:
    """Two methods with different backbones have the same three figures."""
    table = TABLES["condinst:table-9"]
    rows = table.find(method="Unifying", backbone="R-50-FPN") + table.find(method="Axial-DeepLab")
    return [[row[name] for name in ("PQ", "PQ thing", "PQ stuff")] for row in rows] == [[43.6, 48.9, 35.6]] * 2


def faster_and_better_than_blendmask() -> bool:
    """With both backbones the time is 5 to 6 % less, not 10 %, and the gain is 0.2 AP, not 1."""
    table = TABLES["dr1mask:table-8"]
    saved, gained = [], []
    for backbone in ("R-50", "R-101"):
        time, ap = (
            [table.value(name, method=method, backbone=backbone) for method in ("DR1Mask", "BlendMask")]
            for name in ("time", "AP")
        )
        saved.append(round(100 * (1 - time[0] / time[1])))
        gained.append(round(ap[0] - ap[1], 1))
    return saved == [5, 5] and gained == [0.2, 0.2]


def best_among_all() -> bool:
    """With the same backbone CondInst has the higher AP, and SOGNet and UPSNet* have a higher PQ."""
    instance, panoptic = TABLES["dr1mask:table-8"], TABLES["dr1mask:table-9"]
    behind = [
        instance.value("AP", method="DR1Mask", backbone=b) < instance.value("AP", method="CondInst", backbone=b)
        for b in ("R-50", "R-101")
    ]
    behind.append(panoptic.value("PQ", method="DR1Mask", backbone="R-50") < panoptic.value("PQ", method="SOGNet"))
    behind.append(panoptic.value("PQ", method="DR1Mask*") < panoptic.value("PQ", method="UPSNet*"))
    return all(behind)


def gain_of_width() -> bool:
    """The rows differ by 2.2; 2.1 is the least that figures rounded to these could differ by."""
    table = TABLES["dr1mask:table-6"]
    gain = table.value("PQ stuff", width=64) - table.value("PQ stuff", width=32)
    return round(gain, 1) == 2.2 and round(gain - 2 * 0.05, 2) == 2.1


def factor_a_alone() -> bool:
    """With A alone AP75 is what it is without."""
    table = TABLES["dr1mask:table-1"]
    return table.value("AP75", factors="w/ A") == table.value("AP75", factors="Baseline")


def embedding_of_factored_attention() -> bool:
    """4 bases of 14 x 14 are 784 numbers and 4 x 4 factors are 16; projecting 32 channels to 4 takes 128 more."""
    bases, channels = 4, 32
    return (bases * 14 * 14, bases * 4, bases * 4 + channels * bases) == (784, 16, 144)


def equation_3_is_not_equation_4() -> bool:
    """On a random map, the sums of Eq. 3 and Eq. 4 agree for a 1x1 kernel and differ for a 3x3 one."""
    import torch  # here: the list of all ids does without torch

    from condinst_edu.papers.naive_dr1mask import eq_3, eq_4

    random = torch.Generator().manual_seed(0)
    x, a, b = torch.randn(3, 2, 4, 5, generator=random, dtype=torch.float64)
    agree = []
    for side in (1, 3):
        weight = torch.randn(2, 2, side, side, generator=random, dtype=torch.float64)
        agree.append(torch.allclose(eq_3(weight, x, a, b), eq_4(weight, x, a, b)))
    return agree == [True, False]


def sections_that_are_no_equations() -> bool:
    """The equations that the project lists are numbered 1 to 9; "3.1" is where Eq. 2, 3 and 4 stand."""
    from condinst_edu.papers.items_dr1mask import ITEMS  # here: it knows nothing of errata

    places = {item.id: item.section for item in ITEMS if ":eq-" in item.id}
    numbered = {f"dr1mask:eq-{n}" for n in range(1, 10)}
    return set(places) == numbered and [places[f"dr1mask:eq-{n}"] for n in (1, 2, 3, 4)] == ["2", "3.1", "3.1", "3.1"]


def kernel_of_a_position() -> bool:
    """C x C numbers take C inputs to C outputs; C numbers take them to one."""
    import torch

    x, matrix, vector = torch.ones(3), torch.ones(3, 3), torch.ones(3)
    return (matrix @ x).shape == (3,) and (vector @ x).shape == ()


def crops_and_attention() -> bool:
    """Crops are square, and a product along the K of Q needs the K channels of R', of which R has D."""
    import torch

    attention, crop = torch.ones(4, 56, 56), torch.ones(32, 56, 56)
    projected = torch.einsum("kd,dhw->khw", torch.ones(4, 32), crop)
    try:
        _ = attention * crop
    except RuntimeError:
        return (attention * projected).shape == (4, 56, 56)
    return False


def strided_convolutions_and_upsampling() -> bool:
    """A 3x3 convolution with stride 2 centres output j on input 2 j; the official upsampling puts it on 2 j + 1."""
    import torch

    from condinst_edu.layers.upsample import aligned_upsample, upsample_to

    x = torch.arange(17.0).expand(17, 17)
    kernel = torch.full((1, 1, 3, 3), 1 / 9)
    coarse = torch.nn.functional.conv2d(x[None, None], kernel, stride=2, padding=1)[0, 0]  # 9 x 9
    ours, official = upsample_to(coarse, (17, 17)), aligned_upsample(coarse, 2)[:17, :17]
    inner = slice(4, 13)
    shifts = [float((y[inner, inner] - x[inner, inner]).mean()) for y in (ours, official)]
    return [round(shift, 3) for shift in shifts] == [0.0, -1.0]


def test_dev_tables_swapped() -> bool:
    """Table 4 is Mapillary's leaderboard, Table 6 lists the methods that are on COCO in Table 5."""
    coco = {row[0] for row in TABLES["adaptis:table-5"].rows}
    ours = {row[0] for row in TABLES["adaptis:table-6"].rows}
    team = {row[0] for row in TABLES["adaptis:table-4"].rows}
    return ours <= coco and team - coco == {"liuxu", "jie.li"}


def weights_and_gradients_of_nfl() -> bool:
    """NFL's weights sum to 1; its gradients on the logits, P held constant, sum to something else than BCE's."""
    confidences, gamma = (0.1, 0.5, 0.7, 0.95), 2
    weights = [(1 - p) ** gamma for p in confidences]
    normalized = [weight / sum(weights) for weight in weights]
    entropy = sum(1 - p for p in confidences)  # |d(-log p) / dz| with p = sigmoid(z)
    focal = sum(w * (1 - p - gamma * p * log(p)) for w, p in zip(normalized, confidences, strict=True))
    per_pixel = len(confidences) * focal  # with weights that sum to the number of pixels
    return abs(sum(normalized) - 1) < 1e-12 and min(abs(focal - entropy), abs(per_pixel - entropy)) > 0.1


def products_of_the_blender() -> bool:
    """4 bases times 56x56 weights are 12 544 products; the attention's resizing, softmax and the sum come on top."""
    bases, side = 4, 56
    return bases * side**2 == 12_544 > 10_000


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
        witness=factor_of_small_objects,
    ),
    Erratum(
        id="condinst:table-1a-1b",
        items=("condinst:table-1a", "condinst:table-1b"),
        where="Table 1a, the row of depth 3, and Table 1b, the row of width 8",
        says="One and the same model has an APm of 38.9 in one table and of 39.1 in the other.",
        finding="39.1 is also what Tables 2 to 5 give for this model; all its other figures agree everywhere.",
        status="confirmed",
        witness=default_model_differs,
    ),
    Erratum(
        id="condinst:table-3-caption",
        items=("condinst:table-3", "condinst-eccv:table-3"),
        where="the caption of Table 3",
        says="Without relative coordinates the AP falls from 35.7 to 31.4.",
        finding="The rows have 35.6 and 31.5; 35.7 and 31.4 are the rows of the conference version.",
        status="confirmed",
        witness=caption_of_conference,
    ),
    Erratum(
        id="condinst:section-3.3",
        items=("condinst:table-3",),
        where="section 3.3",
        says="It cites the second row of Table 3 for the AP without relative coordinates and for that with them alone.",
        finding="The first row is the one without relative coordinates (31.5), the second has nothing else (31.3).",
        status="confirmed",
        witness=row_of_table_3,
    ),
    Erratum(
        id="condinst:section-3.6",
        items=("condinst:table-6", "condinst-eccv:table-6"),
        where="section 3.6, beside Table 6",
        says="CondInst's AP is 35.4, 37.8, 38.8 and 40.1 in the text.",
        finding="The rows have 35.3, 37.7, 38.6 and 40.0; the text has the figures of the conference version.",
        status="confirmed",
        witness=text_of_conference,
    ),
    Erratum(
        id="condinst:table-9-rows",
        items=("condinst:table-9",),
        where="Table 9",
        says="Unifying with R-50 and Axial-DeepLab both have 43.6, 48.9 and 35.6.",
        finding="Two methods with other backbones agree in all three figures; the paper does not show which is right.",
        status="confirmed",
        witness=identical_rows,
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
        witness=equation_3_is_not_equation_4,
    ),
    Erratum(
        id="dr1mask:equation-3.1",
        items=("dr1mask:eq-1", "dr1mask:eq-4", "dr1mask:eq-5"),
        where="sections 3.1, 3.2.1 and 4.2",
        says='It cites "Equation 3.1" for A and B, and "Equation (2)" for what DR1Conv extends.',
        finding=(
            "There is no Equation 3.1, it is the section of DR1Conv: Eq. 4 is meant. What is extended is the formula"
            " after Eq. 1, which has no number; Eq. 2 comes after the reference to it."
        ),
        status="confirmed",
        witness=sections_that_are_no_equations,
    ),
    Erratum(
        id="dr1mask:kernel-shape",
        items=("dr1mask:eq-2",),
        where="section 3.1, above Eq. 2",
        says="The dynamic kernel W'_hw of a position has C numbers.",
        finding="It maps C channels to C channels: C x C numbers, made from the 2 C of a_hw and b_hw.",
        status="confirmed",
        witness=kernel_of_a_position,
    ),
    Erratum(
        id="dr1mask:crops",
        items=("dr1mask:eq-7", "dr1mask:eq-8"),
        where="section 3.2.3",
        says="Crops are D x 56 x 56, then D x 56 x 65; Q is multiplied with R.",
        finding="65 is a slip of 56. Q has K channels, as R' of Eq. 7 has; R has D: it is Q times R'.",
        status="confirmed",
        witness=crops_and_attention,
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
        witness=strided_convolutions_and_upsampling,
    ),
    Erratum(
        id="dr1mask:abstract",
        items=("dr1mask:table-8",),
        where="the abstract, beside Table 8",
        says="DR1Mask is 10 % faster than BlendMask and 1 point of AP better.",
        finding="69 to 73 ms and 89 to 94 ms are 5 % less; 38.3 to 38.1 and 39.8 to 39.6 AP are 0.2 points.",
        status="confirmed",
        witness=faster_and_better_than_blendmask,
    ),
    Erratum(
        id="dr1mask:section-4.3",
        items=("dr1mask:table-8", "dr1mask:table-9"),
        where="section 4.3, beside Tables 8 and 9",
        says="DR1Mask has the best results of all methods in both tables.",
        finding="CondInst is ahead in AP with either backbone; SOGNet (R-50) and UPSNet* (R-101) are ahead in PQ.",
        status="confirmed",
        witness=best_among_all,
    ),
    Erratum(
        id="dr1mask:table-6-gain",
        items=("dr1mask:table-6",),
        where="section 4.2, beside Table 6",
        says="Going from 32 to 64 channels adds 2.1 PQ for stuff.",
        finding="The rows, 30.7 and 32.9, differ by 2.2; figures before rounding may just have differed by 2.1.",
        status="open",
        witness=gain_of_width,
    ),
    Erratum(
        id="dr1mask:table-1-gain",
        items=("dr1mask:table-1",),
        where="section 4.2, beside Table 1",
        says="A and B each improve AP50 and AP75 slightly.",
        finding="A alone leaves AP75 at 36.8.",
        status="confirmed",
        witness=factor_a_alone,
    ),
    Erratum(
        id="dr1mask:section-3.2.3",
        items=("dr1mask:eq-7", "dr1mask:eq-8"),
        where="section 3.2.3",
        says="Factored attention takes the embedding of an instance from 784 parameters to 16.",
        finding="16 are the factors s alone; the embedding also carries the D K weights t: 144 with D = 32, K = 4.",
        status="confirmed",
        witness=embedding_of_factored_attention,
    ),
    Erratum(
        id="adaptis:section-7",
        items=("adaptis:table-4", "adaptis:table-6"),
        where="section 7",
        says="It cites Table 6 for Mapillary test-dev and Table 4 for COCO test-dev.",
        finding="Table 4 is Mapillary's leaderboard, Table 6 is COCO's.",
        status="confirmed",
        witness=test_dev_tables_swapped,
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
        witness=weights_and_gradients_of_nfl,
    ),
    Erratum(
        id="slides:blendmask-cost",
        items=("slides:blendmask-blender",),
        where="the slide on why not R-CNN",
        says="BlendMask takes less than 10K operations for a mask.",
        finding="Weighing 4 bases of 56x56 alone takes 12 544 products. Beside 0.7 G of Mask R-CNN it changes nothing.",
        status="confirmed",
        witness=products_of_the_blender,
    ),
)

ERRATA: dict[str, Erratum] = {entry.id: entry for entry in ENTRIES}
