"""What the project answers for in CondInst: the journal version, and what the conference version has otherwise."""

from condinst_edu.papers.forms import Item

ITEMS = (
    Item(
        id="condinst:eq-1",
        title="Overall loss: FCOS's and the masks', lambda = 1",
        section="2.3",
        formula=r"L_{overall} = L_{fcos} + \lambda L_{mask}",
        symbols=("condinst_edu.condinst.CondInst.losses", "condinst_edu.fcos.fcos_losses"),
    ),
    Item(
        id="condinst:eq-2",
        title="Mask loss: mean dice loss of the positive locations' mask heads",
        section="2.3",
        formula=(
            r"L_{mask}(\{\theta_{x,y}\}) = \frac{1}{N_{pos}} \sum_{x,y} \mathbb{1}_{\{c^*_{x,y} > 0\}}"
            r" L_{dice}\big(\mathrm{MaskHead}(\tilde{F}_{x,y}; \theta_{x,y}), M^*_{x,y}\big)"
        ),
        symbols=(
            "condinst_edu.condinst.CondInst.mask_loss",
            "condinst_edu.layers.losses.dice_loss",
            "condinst_edu.mask_head.DynamicMaskHead.forward",
        ),
    ),
    Item(
        id="condinst:locations",
        title="The image pixel that a cell of a feature map stands for",
        section="2.2",
        formula=r"(x, y) \mapsto \left(\lfloor s/2 \rfloor + x s,\ \lfloor s/2 \rfloor + y s\right)",
        symbols=("condinst_edu.coordinates.locations",),
    ),
    Item(
        id="condinst:center-region",
        title="Locations near the mass centre of a mask are positive, r = 1.5",
        section="2.2",
        formula=r"(c_x - r s,\ c_y - r s,\ c_x + r s,\ c_y + r s)",
        symbols=("condinst_edu.fcos.assign_targets", "condinst_edu.coordinates.mass_centers"),
    ),
    Item(
        id="condinst:controller",
        title="The controller predicts 169 parameters of a mask head: 152 weights and 17 biases",
        section="2.2",
        formula=r"(8 + 2) \cdot 8 + 8 \cdot 8 + 8 \cdot 1 + (8 + 8 + 1) = 169",
        symbols=(
            "condinst_edu.mask_head.split_parameters",
            "condinst_edu.mask_head.DynamicMaskHead.num_parameters",
            "condinst_edu.fcos.FCOSHead.top_at",
        ),
    ),
    Item(
        id="condinst:bottom-branch",
        title="Bottom branch: P3 + P4 + P5, four 3x3 convolutions of 128 channels, then 8 channels",
        section="2.1",
        symbols=("condinst_edu.condinst.BottomBranch",),
    ),
    Item(
        id="condinst:relative-coordinates",
        title="Coordinates with the location that made the filters as the origin",
        section="2.1",
        symbols=("condinst_edu.coordinates.relative_coordinates", "condinst_edu.mask_head.DynamicMaskHead"),
    ),
    Item(
        id="condinst:upsampling",
        title="Masks are upsampled bilinearly by 2, from 1/8 to 1/4 of the image",
        section="2.1, 3.4",
        symbols=("condinst_edu.layers.upsample.aligned_upsample", "condinst_edu.layers.upsample.resize_masks"),
    ),
    Item(
        id="condinst:top-64",
        title="At most 64 positive locations of an image are trained, the best by score",
        section="2.3",
        symbols=("condinst_edu.condinst.sample_locations",),
    ),
    Item(
        id="condinst:semantic-loss",
        title="Joint semantic segmentation as an auxiliary task of training",
        section="2.3",
        symbols=("condinst_edu.condinst.SemanticHead", "condinst_edu.condinst.semantic_loss"),
    ),
    Item(
        id="condinst:inference",
        title="Box NMS at 0.6, then the masks of the 100 best",
        section="2.4",
        symbols=(
            "condinst_edu.fcos.class_nms",
            "condinst_edu.fcos.keep_best",
            "condinst_edu.condinst.CondInst.detect",
        ),
    ),
    Item(
        id="condinst:panoptic-branch",
        title="Semantic branch: P2 to P5 concatenated, a 1x1 convolution, softmax; loss weight 0.5",
        section="2.5",
    ),
    Item(
        id="condinst:panoptic-fusion",
        title="Fusion: instances from score 0.45 on; one that loses more than 40 % of its area goes",
        section="2.5",
    ),
    Item(
        id="condinst:table-1a",
        title="Depth of the mask head",
        section="3.2",
        symbols=("condinst_edu.mask_head.DynamicMaskHead",),
        miniature=True,
    ),
    Item(
        id="condinst:table-1b",
        title="Width of the mask head",
        section="3.2",
        symbols=("condinst_edu.mask_head.DynamicMaskHead",),
        miniature=True,
    ),
    Item(
        id="condinst:table-2",
        title="Channels of the bottom branch",
        section="3.3",
        symbols=("condinst_edu.condinst.BottomBranch",),
        miniature=True,
    ),
    Item(
        id="condinst:table-3",
        title="No, relative or absolute coordinates; coordinates alone",
        section="3.3",
        symbols=("condinst_edu.mask_head.DynamicMaskHead", "condinst_edu.coordinates.absolute_coordinates"),
        miniature=True,
    ),
    Item(
        id="condinst:table-4",
        title="Upsampling factor of the masks",
        section="3.4",
        symbols=("condinst_edu.layers.upsample.aligned_upsample",),
        miniature=True,
    ),
    Item(
        id="condinst:table-5",
        title="NMS by boxes or by masks",
        section="3.5",
        symbols=("condinst_edu.condinst.mask_nms",),
        miniature=True,
    ),
    Item(
        id="condinst:table-6",
        title="Comparison on COCO: backbones, schedules, semantic task",
        section="3.6",
        symbols=("condinst_edu.recipes.coco.coco", "condinst_edu.layers.bifpn.BiFPN"),
    ),
    Item(
        id="condinst:table-7",
        title="Real-time models: DLA-34, shared towers",
        section="3.7",
        symbols=("condinst_edu.recipes.coco.real_time",),
    ),
    Item(
        id="condinst:table-8",
        title="Cityscapes",
        section="3.8",
        symbols=("condinst_edu.recipes.cityscapes.cityscapes",),
    ),
    Item(id="condinst:table-9", title="Panoptic segmentation on COCO", section="3.9"),
    Item(
        id="condinst-eccv:mask-branch",
        title="The mask branch reads P3 alone",
        section="2.1",
        symbols=("condinst_edu.condinst.BottomBranch",),
    ),
    Item(
        id="condinst-eccv:upsampling",
        title="Masks are upsampled by 4: targets at half the image's resolution",
        section="2.1, 2.3",
        symbols=("condinst_edu.layers.upsample.aligned_upsample", "condinst_edu.condinst.sampled_masks"),
    ),
    Item(
        id="condinst-eccv:random-500",
        title="Up to 500 positive locations per GPU, chosen at random (as the journal version tells)",
        section="2.3 of the journal version",
        symbols=("condinst_edu.condinst.sample_locations",),
    ),
    Item(
        id="condinst-eccv:table-1",
        title="Architecture of the mask head: 1a depth, 1b width",
        section="3.2",
        symbols=("condinst_edu.mask_head.DynamicMaskHead",),
    ),
    Item(
        id="condinst-eccv:table-1a",
        title="Depth of the mask head",
        section="3.2",
        symbols=("condinst_edu.mask_head.DynamicMaskHead",),
    ),
    Item(
        id="condinst-eccv:table-1b",
        title="Width of the mask head",
        section="3.2",
        symbols=("condinst_edu.mask_head.DynamicMaskHead",),
    ),
    Item(
        id="condinst-eccv:table-2",
        title="Channels of the mask branch",
        section="3.3",
        symbols=("condinst_edu.condinst.BottomBranch",),
    ),
    Item(
        id="condinst-eccv:table-3",
        title="No, relative or absolute coordinates; coordinates alone",
        section="3.3",
        symbols=("condinst_edu.mask_head.DynamicMaskHead", "condinst_edu.coordinates.absolute_coordinates"),
    ),
    Item(
        id="condinst-eccv:table-4",
        title="Upsampling factor of the masks",
        section="3.4",
        symbols=("condinst_edu.layers.upsample.aligned_upsample",),
    ),
    Item(
        id="condinst-eccv:table-5",
        title="NMS by boxes or by masks",
        section="3.5",
        symbols=("condinst_edu.condinst.mask_nms",),
    ),
    Item(
        id="condinst-eccv:table-6",
        title="Comparison on COCO",
        section="3.6",
        symbols=("condinst_edu.recipes.coco.coco_condinst_eccv_r50_1x",),
    ),
)
