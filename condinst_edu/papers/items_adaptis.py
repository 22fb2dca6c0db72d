"""What the project answers for in AdaptIS."""

from condinst_edu.papers.forms import Item

ITEMS = (
    Item(
        id="adaptis:adain",
        title="Adaptive instance normalisation: a vector's scale and shift for every channel",
        section="3",
        symbols=("condinst_edu.adaptis.AdaIN",),
    ),
    Item(
        id="adaptis:controller-network",
        title="Fully connected layers from the embedding of a point to the parameters of AdaIN",
        section="3",
        symbols=("condinst_edu.adaptis.controller", "condinst_edu.adaptis.point_features"),
    ),
    Item(
        id="adaptis:relative-coordconv",
        title="Coordinates relative to the point in units of R, clipped to [-1, 1]",
        section="3",
        symbols=("condinst_edu.coordinates.relative_coordconv", "condinst_edu.adaptis.InstanceHead"),
    ),
    Item(
        id="adaptis:nfl",
        title="Normalized focal loss: the focal loss over the sum of its own weights",
        section="appendix A",
        formula=(
            r"\mathrm{NFL}(i, j, \hat M) = -\frac{1}{P(\hat M)} (1 - p_{i,j})^\gamma \log p_{i,j},"
            r" \quad P(\hat M) = \sum_{i,j} (1 - p_{i,j})^\gamma"
        ),
        symbols=("condinst_edu.layers.losses.normalized_focal_loss", "condinst_edu.adaptis.AdaptIS.mask_loss"),
    ),
    Item(
        id="adaptis:focal",
        title="Focal loss of a pixel",
        section="appendix A",
        formula=r"\mathrm{FL}(i, j) = -(1 - p_{i,j})^\gamma \log p_{i,j}",
        symbols=("condinst_edu.adaptis.AdaptIS.mask_loss",),
    ),
    Item(
        id="adaptis:point-sampling",
        title="K points of an image in training: first an object at random, then a pixel of it",
        section="3",
        symbols=("condinst_edu.adaptis.sample_points",),
    ),
    Item(
        id="adaptis:greedy-aggregation",
        title="Objects one by one: a new one is kept if less than half of it is covered already",
        section="4",
        formula=r"M_i = [C_i > T], \quad R(x, y) = \arg\max_{i = 1, \dots, N} C_i(x, y)",
        symbols=("condinst_edu.adaptis_greedy.aggregate", "condinst_edu.adaptis.Seen.aggregate"),
    ),
    Item(
        id="adaptis:proposal-branch",
        title="Point proposals: the 20 % of an object's points with the best masks are positive",
        section="5",
        symbols=(
            "condinst_edu.adaptis.dense_head",
            "condinst_edu.adaptis.proposal_labels",
            "condinst_edu.adaptis.AdaptIS.proposal_loss",
        ),
    ),
    Item(
        id="adaptis:local-maxima",
        title="Proposals at the local maxima of the branch's output, by breadth-first search",
        section="5",
        symbols=("condinst_edu.adaptis_greedy.find_local_maxima",),
    ),
    Item(
        id="adaptis:class-of-mask",
        title="The class of a mask: the largest sum of class probabilities over its pixels",
        section="5",
        formula=r"l(M) = \arg\max_{l = 1, \dots, K} \sum_{(x,y) \in M} p^l_{x,y}",
        symbols=("condinst_edu.adaptis_greedy.class_of_mask",),
    ),
    Item(
        id="adaptis:toy-data",
        title="Toy data: 96x96 pixels, 8 to 22 objects, 10 000 images to learn from and 2 000 to test",
        section="6",
        symbols=("condinst_edu.datasets.bacteria.generate", "condinst_edu.datasets.bacteria.paper_config"),
    ),
    Item(
        id="adaptis:toy-protocol",
        title="Testing on toy data: of 7 random points at a time, the most confident mask is kept",
        section="6",
        symbols=("condinst_edu.adaptis_greedy.RandomPoints",),
    ),
    Item(id="adaptis:table-1", title="The toy problem (here at full scale)", section="6"),
    Item(id="adaptis:table-2", title="Cityscapes val", section="7"),
    Item(id="adaptis:table-3", title="Mapillary val", section="7"),
    Item(id="adaptis:table-4", title="Mapillary test-dev", section="7"),
    Item(id="adaptis:table-5", title="COCO val", section="7"),
    Item(id="adaptis:table-6", title="COCO test-dev", section="7"),
    Item(id="adaptis:table-7", title="NFL, FL and BCE; Relative CoordConv", section="appendix B", miniature=True),
)
