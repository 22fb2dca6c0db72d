"""Tables of DR1Mask: figures as printed, captions ours."""

from condinst_edu.papers.forms import MASK_AP, PQ, Column, Table

TABLES = (
    Table(
        id="dr1mask:table-1",
        caption="DR1Conv without A, B or both, in instance segmentation.",
        columns=(Column("factors"), *MASK_AP[:3]),
        rows=(
            ("Baseline", 34.7, 55.5, 36.8),
            ("w/ A", 34.9, 55.9, 36.8),
            ("w/ B", 34.9, 55.6, 37.0),
            ("w/ A, B", 35.2, 56.1, 37.5),
        ),
    ),
    Table(
        id="dr1mask:table-2",
        caption="DR1Conv with and without A and B, in panoptic segmentation.",
        columns=(Column("factors"), *PQ),
        rows=(
            ("w/o A, B", 38.7, 45.9, 28.0),
            ("w/ A, B", 40.0, 46.8, 29.9),
        ),
    ),
    Table(
        id="dr1mask:table-3",
        caption="Where the context features are computed.",
        columns=(Column("position"), *MASK_AP[:3]),
        rows=(
            ("None", 34.7, 55.5, 36.8),
            ("FPN", 34.2, 55.5, 36.0),
            ("class tower", 34.5, 55.6, 36.5),
            ("box tower", 35.2, 56.1, 37.5),
        ),
    ),
    Table(
        id="dr1mask:table-4",
        caption="How an instance weighs the bases: a vector, full attention or factored attention.",
        columns=(Column("attention"), Column("time", "ms"), *MASK_AP[:3]),
        rows=(
            ("Vector", 68.7, 35.2, 56.1, 37.5),
            ("Full", 72.0, 36.2, 56.7, 38.7),
            ("Factored", 69.2, 36.3, 56.9, 38.8),
        ),
    ),
    Table(
        id="dr1mask:table-5",
        caption="What the padded input size is divisible by, in panoptic segmentation.",
        columns=(Column("divisibility", "pixels"), *PQ),
        rows=(
            (32, 39.5, 46.5, 28.8),
            (128, 39.9, 46.5, 30.0),
            ("4 w/ aligned", 40.0, 46.8, 29.9),
        ),
    ),
    Table(
        id="dr1mask:table-6",
        caption="Channels of DR1Basis, in panoptic segmentation.",
        columns=(Column("width", "channels"), *PQ),
        rows=(
            (32, 41.8, 49.1, 30.7),
            (64, 42.9, 49.5, 32.9),
            (128, 42.8, 49.5, 32.8),
        ),
        notes="R-50, 270 000 iterations.",
    ),
    Table(
        id="dr1mask:table-7",
        caption="Vector or factored attention, in panoptic segmentation.",
        columns=(Column("attention"), *PQ),
        rows=(
            ("Vector", 40.0, 46.8, 29.9),
            ("Factored", 39.0, 46.8, 27.3),
        ),
    ),
    Table(
        id="dr1mask:table-8",
        caption="DR1Mask among other methods: instance segmentation on COCO test-dev, time on one GTX 1080 Ti.",
        columns=(Column("method"), Column("backbone"), Column("time", "ms"), *MASK_AP),
        rows=(
            ("Mask R-CNN", "R-50", 74, 37.5, 59.3, 40.2, 21.1, 39.6, 48.3),
            ("BlendMask", "R-50", 73, 38.1, 59.5, 41.0, 21.3, 40.5, 49.3),
            ("CondInst", "R-50", 72, 38.7, 60.3, 41.5, 20.7, 41.0, 51.3),
            ("DR1Mask", "R-50", 69, 38.3, 59.6, 41.2, 21.1, 40.4, 50.0),
            ("Mask R-CNN", "R-101", 94, 38.8, 60.9, 41.9, 21.8, 41.4, 50.5),
            ("BlendMask", "R-101", 94, 39.6, 61.6, 42.6, 22.4, 42.2, 51.4),
            ("CondInst", "R-101", 93, 40.1, 61.9, 43.0, 21.7, 42.8, 53.1),
            ("DR1Mask", "R-101", 89, 39.8, 61.6, 42.9, 21.9, 42.4, 51.9),
            ("DR1Mask*", "R-101", 98, 41.2, 63.2, 44.5, 22.6, 43.8, 54.7),
        ),
        notes="*: deformable convolutions in the backbone.",
    ),
    Table(
        id="dr1mask:table-9",
        caption="DR1Mask among other methods: panoptic segmentation on COCO, val2017 for R-50 and test-dev for R-101.",
        columns=(
            Column("method"),
            Column("backbone"),
            Column("time", "ms"),
            PQ[0],
            Column("SQ", "%"),
            Column("RQ", "%"),
            *PQ[1:],
        ),
        rows=(
            ("Panoptic-FPN", "R-50", 89, 41.5, 79.1, 50.5, 48.3, 31.2),
            ("UPSNet", "R-50", 233, 42.5, 78.2, 52.4, 48.6, 33.4),
            ("SOGNet", "R-50", 248, 43.7, 78.7, 53.5, 50.6, 33.1),
            ("Panoptic-DeepLab", "R-50", 149, 35, None, None, None, None),
            ("BlendMask", "R-50", 96, 42.5, 80.1, 51.6, 49.5, 32.0),
            ("DR1Mask", "R-50", 79, 42.9, 79.8, 52.0, 49.5, 32.9),
            ("Panoptic-DeepLab", "Xception-71", None, 41.4, None, None, 45.1, 35.9),
            ("Panoptic-FPN", "R-101", 111, 43.6, 79.7, 52.9, 51.0, 32.6),
            ("BlendMask", "R-101", 117, 44.5, 80.7, 53.8, 52.1, 33.0),
            ("UPSNet*", "R-101", 237, 46.3, 79.8, 56.5, 52.7, 36.8),
            ("DR1Mask", "R-101", 99, 44.5, 80.7, 53.8, 51.7, 33.5),
            ("DR1Mask*", "R-101", 109, 46.1, 81.5, 55.3, 53.1, 35.5),
        ),
        notes="*: deformable convolutions in the backbone.",
    ),
)
