"""Witnesses of errata: each works a contradiction out anew and returns whether what `papers.errata` finds holds."""

from math import log

from condinst_edu.papers.tables import TABLES


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
    """31.5 (31.4), without relative coordinates, is the first row; 31.3, relative coordinates alone, is the second."""
    found = []
    for paper in ("condinst", "condinst-eccv"):
        first, second = (TABLES[f"{paper}:table-3"].row(i) for i in (0, 1))
        found.append((first["AP"], first["relative"], second["AP"], second["features"]))
    return found == [(31.5, False, 31.3, False), (31.4, False, 31.3, False)]


def identical_rows() -> bool:
    """Two methods with different backbones have the same three figures."""
    table = TABLES["condinst:table-9"]
    rows = table.find(method="Unifying", backbone="R-50-FPN") + table.find(method="Axial-DeepLab")
    return [[row[name] for name in ("PQ", "PQ thing", "PQ stuff")] for row in rows] == [[43.6, 48.9, 35.6]] * 2


def panoptic_fcn_is_no_panoptic_fpn() -> bool:
    """With equal backbones CondInst is 0.6 to 0.7 PQ ahead of Panoptic-FCN and Unifying, and behind both in stuff."""
    table = TABLES["condinst:table-9"]
    pairs = (("Panoptic-FCN", "R-101-FPN"), ("Panoptic-FCN", "DCN-101-FPN"), ("Unifying", "DCN-101-FPN"))
    ahead = [
        [
            round(
                table.value(name, method="CondInst", backbone=backbone)
                - table.value(name, method=m, backbone=backbone),
                1,
            )
            for m, backbone in pairs
        ]
        for name in ("PQ", "PQ stuff")
    ]
    return ahead == [[0.6, 0.7, 0.6], [-3.2, -2.0, -1.9]]


def mask_without_a_class_axis() -> bool:
    """A mask head gives one map of an instance; a target with an axis for C classes has C times as many numbers."""
    import torch  # here: the list of all ids does without torch

    from condinst_edu.mask_head import DynamicMaskHead

    head, count, size, classes = DynamicMaskHead(), 3, (5, 7), 80
    features, theta = torch.zeros(8, *size), torch.zeros(count, head.num_parameters)
    logits = head(features, theta, torch.zeros(count, 2), torch.ones(count), stride=8)
    return logits.shape == (count, *size) and torch.zeros(*size, classes).numel() == classes * logits[0].numel()


def concatenation_is_no_sum() -> bool:
    """Concatenation and a 1x1 convolution are linear in the pyramid; Panoptic-FPN's sum, behind norms, is not."""
    import torch

    from condinst_edu.panoptic import SemanticBranch

    torch.manual_seed(0)
    pyramid = [torch.randn(1, 32, 16 >> level, 24 >> level) for level in range(4)]
    linear = []
    for branch in (SemanticBranch(32, 5), SemanticBranch(32, 5, form="sum", channels=32)):
        zero, once, twice = (branch([k * x for x in pyramid]) for k in (0, 1, 2))
        linear.append(torch.allclose(twice - zero, 2 * (once - zero), atol=1e-4))
    return linear == [True, False]


def controller_reads_the_box_tower() -> bool:
    """Other weights in the class tower leave theta as it is, other weights in the box tower do not."""
    import torch

    from condinst_edu.fcos import FCOSHead

    torch.manual_seed(0)
    head, x = FCOSHead(16, 3, (8,), top_channels=169, tower_convs=1), [torch.randn(1, 16, 4, 6)]

    moved = []
    for tower in (head.class_tower, head.box_tower):
        before = head(x).tower  # what the controller reads
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.add_(0.1)
        moved.append(not torch.equal(before, head(x).tower))
    return moved == [False, True]


def levels_are_refined_before_the_sum() -> bool:
    """FPN's levels have 256 channels; ours, as the official branch, go to 128 by a convolution each before the sum."""
    from condinst_edu.condinst import BottomBranch

    first = [next(block.parameters()) for block in BottomBranch().refine]
    return [tuple(weight.shape) for weight in first] == [(128, 256, 3, 3)] * 3


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


def aligned_beside_128() -> bool:
    """In stuff, aligned upsampling is ahead of padding to 32 by 1.1, and behind padding to 128 by 0.1."""
    table = TABLES["dr1mask:table-5"]
    aligned = table.value("PQ stuff", divisibility="4 w/ aligned")
    return [round(aligned - table.value("PQ stuff", divisibility=n), 1) for n in (32, 128)] == [1.1, -0.1]


def stride_of_the_last_step() -> bool:
    """DR1Basis without its last upsampling gives a map of P3's size; P3 has stride 8, twice the output's 4."""
    import torch

    from condinst_edu.dr1mask import DR1Basis

    basis = DR1Basis(6, width=4, levels=3)
    pyramid = [torch.zeros(1, 6, 8 >> level, 12 >> level) for level in range(3)]
    sizes = [tuple(x.shape[2:]) for x in (basis(pyramid, []), basis(pyramid, [], (16, 24)))]
    return sizes == [(8, 12), (16, 24)] and 2**3 == 2 * 4


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
    """Full attention takes 784 numbers, factored attention 16 and the 128 of the projection of 32 channels to 4."""
    from condinst_edu.dr1mask import FactoredAttention, FullAttention

    factored = FactoredAttention(width=32, bases=4, rank=4, size=14)
    sizes = (FullAttention(32, 4, 14).num_parameters, factored.bases * factored.rank, factored.num_parameters)
    return sizes == (784, 16, 16 + 32 * 4)


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

    places = {item.id.split("-")[1]: item.section for item in ITEMS if ":eq-" in item.id}
    return "".join(sorted(places)) == "123456789" and [places[n] for n in "1234"] == ["2", "3.1", "3.1", "3.1"]


def kernel_of_a_position() -> bool:
    """What Eq. 2 makes of the C unit vectors is its kernel: C x C numbers, none of them 0, which C could not tell."""
    import torch

    from condinst_edu.papers.naive_dr1mask import eq_1

    random = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 3, generator=random, dtype=torch.float64)
    a, b = torch.randn(2, 3, generator=random, dtype=torch.float64)
    kernel = torch.stack([(weight @ (x * a)) * b for x in torch.eye(3, dtype=torch.float64)], dim=1)
    full = int(kernel.count_nonzero()) == 9 and int(torch.linalg.matrix_rank(kernel)) == 3
    return full and torch.allclose(kernel, eq_1(weight, a, b))


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


def average_and_sum_agree() -> bool:
    """Dividing the sums of all classes by the mask's area leaves the largest one the largest."""
    import torch

    from condinst_edu.papers.naive_adaptis import class_of_mask

    random = torch.Generator().manual_seed(0)
    probabilities = torch.rand(5, 6, 9, generator=random).softmax(dim=0)
    masks = torch.rand(20, 6, 9, generator=random) < 0.3
    return all(class_of_mask(probabilities, mask) == int(probabilities[:, mask].mean(dim=1).argmax()) for mask in masks)


def class_among_all_or_things() -> bool:
    """On a mask that looks like stuff more than like any thing, the two rules name different classes."""
    import torch

    from condinst_edu.adaptis_greedy import class_of_mask
    from condinst_edu.papers import naive_adaptis

    probabilities = torch.tensor([0.5, 0.2, 0.3])[:, None, None].expand(3, 4, 5)  # one class of stuff, two of things
    mask, stuff = torch.ones(4, 5, dtype=torch.bool), 1
    among_things = stuff + int(class_of_mask(probabilities[stuff:], mask[None])[0])
    return (naive_adaptis.class_of_mask(probabilities, mask), among_things) == (0, 2)


def backbones_of_the_tables() -> bool:
    """Tables 3 and 5 have AdaptIS with ResNet-50 and ResNet-101 beside ResNeXt-101."""
    rows = [TABLES[id].find(method="AdaptIS") for id in ("adaptis:table-3", "adaptis:table-5")]
    return [[row["backbone"] for row in found] for found in rows] == [["ResNet-50", "ResNet-101", "ResNeXt-101"]] * 2


def radius_of_the_toy_problem() -> bool:
    """With R = 280 no coordinate on 96 pixels is beyond 0.34, and none is clipped; our toy model has the code's 42."""
    from condinst_edu.adaptis import InstanceHead
    from condinst_edu.recipes.adaptis import cityscapes_adaptis_r50

    toy, photographs = InstanceHead(8).radius, cityscapes_adaptis_r50().model_args["head"]["radius"]
    return round(95 / 280, 2) == 0.34 and (toy, photographs) == (42, 280)


def colours_of_the_cells() -> bool:
    """Pixels inside our cells, away from their borders, are more red than blue."""
    import numpy as np

    from condinst_edu.datasets.bacteria import generate

    drawn = generate(0, seed=0)
    inside = np.stack([mask & np.roll(mask, 2, 0) & np.roll(mask, -2, 0) for mask in drawn.masks]).any(axis=0)
    red, _, blue = drawn.image[inside].mean(axis=0)
    return bool(red > blue)


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
