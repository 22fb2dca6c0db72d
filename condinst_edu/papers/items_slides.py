"""What the project answers for in the tutorial slides of the FCOS family."""

from condinst_edu.papers.forms import Item

ITEMS = (
    Item(
        id="slides:fcos-ambiguity",
        title="Locations in several boxes: most boxes that overlap go to different FPN levels",
        section="FCOS",
        symbols=("condinst_edu.fcos.assign_targets",),
    ),
    Item(id="slides:fcos-recall", title="FPN levels raise the best possible recall", section="FCOS"),
    Item(
        id="slides:centerness",
        title="Centre-ness: how near a location is to the middle of its box",
        section="FCOS",
        formula=(r"\sqrt{\frac{\min(l, r)}{\max(l, r)} \cdot \frac{\min(t, b)}{\max(t, b)}}"),
        symbols=("condinst_edu.fcos.centerness",),
    ),
    Item(
        id="slides:blendmask-blender",
        title="Blender: 4 bases of 56x56, attention resized to 56x56, a sum weighted by softmax",
        section="BlendMask",
        symbols=(
            "condinst_edu.blendmask.BlendMask",
            "condinst_edu.blendmask.BasisModule",
            "condinst_edu.blendmask.DeepLabBases",
            "condinst_edu.blendmask.blend",
            "condinst_edu.blendmask.crop_bases",
            "condinst_edu.blendmask.merge_bases",
        ),
    ),
    Item(
        id="slides:yolact-vector",
        title="YOLACT as a blender: attention of 1x1",
        section="BlendMask",
        symbols=("condinst_edu.blendmask.blend",),
    ),
    Item(
        id="slides:fcis",
        title="FCIS as a blender: one-hot attention",
        section="BlendMask",
        symbols=("condinst_edu.blendmask.blend",),
    ),
    Item(
        id="slides:solo-grid",
        title="SOLO: the mask of grid cell (i, j) is channel k",
        section="SOLO",
        formula=r"k = i \cdot S + j",
        symbols=(
            "condinst_edu.solo.SOLOHead",
            "condinst_edu.solo.SOLOHead.cell_masks",
            "condinst_edu.solo.claimed_cells",
            "condinst_edu.solo.assign_cells",
        ),
    ),
    Item(
        id="slides:solo-losses",
        title="SOLO's losses: focal for the classes, dice for the masks",
        section="SOLO",
        symbols=("condinst_edu.solo.SOLO.losses", "condinst_edu.layers.losses.dice_loss"),
    ),
    Item(
        id="slides:solo-coordconv",
        title="SOLO's mask branch reads coordinates in [-1, 1]",
        section="SOLO",
        symbols=("condinst_edu.coordinates.coordconv", "condinst_edu.solo.SOLOHead"),
    ),
    Item(
        id="slides:solo-levels",
        title="SOLO on several levels of the pyramid",
        section="SOLO",
        symbols=("condinst_edu.solo.SOLO.split", "condinst_edu.solo.assign_cells"),
    ),
    Item(
        id="slides:solo-grid-number",
        title="SOLO with grids of other sizes",
        section="SOLO",
        symbols=("condinst_edu.solo.SOLO",),
        miniature=True,
    ),
    Item(
        id="slides:decoupled-solo",
        title="Decoupled SOLO: a mask is the product of its row's and its column's",
        section="SOLO",
        formula=r"p(k) = p(i)\, p(j)",
        symbols=("condinst_edu.solo.DecoupledHead.cell_masks", "condinst_edu.solo.DecoupledSOLO"),
    ),
)
