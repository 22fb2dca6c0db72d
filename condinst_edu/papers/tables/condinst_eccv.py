"""Tables of CondInst, the conference version, which differ from the journal's: figures as printed, captions ours."""

from condinst_edu.papers.forms import MASK_AP, MASK_AR, Column, Table

TABLES = (
    Table(
        id="condinst-eccv:table-1a",
        caption="Depth of the mask head at width 8, and the mask AP on COCO val2017.",
        columns=(Column("depth", "layers"), Column("time", "ms per 100 instances"), *MASK_AP),
        rows=(
            (1, 2.2, 30.9, 52.9, 31.4, 14.0, 33.3, 45.1),
            (2, 3.3, 35.5, 56.1, 37.8, 17.0, 38.9, 50.8),
            (3, 4.5, 35.7, 56.3, 37.8, 17.1, 39.1, 50.2),
            (4, 5.6, 35.7, 56.2, 37.9, 17.2, 38.7, 51.5),
        ),
    ),
    Table(
        id="condinst-eccv:table-1b",
        caption="Width of the mask head at depth 3, and the mask AP on COCO val2017.",
        columns=(Column("width", "channels"), Column("time", "ms per 100 instances"), *MASK_AP),
        rows=(
            (2, 2.5, 34.1, 55.4, 35.8, 15.9, 37.2, 49.1),
            (4, 2.6, 35.6, 56.5, 38.1, 17.0, 39.2, 51.4),
            (8, 4.5, 35.7, 56.3, 37.8, 17.1, 39.1, 50.2),
            (16, 4.7, 35.6, 56.2, 37.9, 17.2, 38.8, 50.8),
        ),
    ),
    Table(
        id="condinst-eccv:table-2",
        caption="Channels of the mask branch that the mask head reads, and the mask AP on COCO val2017.",
        columns=(Column("C_mask", "channels"), *MASK_AP),
        rows=(
            (1, 34.8, 55.9, 36.9, 16.7, 38.0, 50.1),
            (2, 35.4, 56.2, 37.6, 16.9, 38.9, 50.4),
            (4, 35.5, 56.2, 37.9, 17.0, 39.0, 50.8),
            (8, 35.7, 56.3, 37.8, 17.1, 39.1, 50.2),
            (16, 35.5, 56.1, 37.7, 16.4, 39.1, 51.2),
        ),
    ),
    Table(
        id="condinst-eccv:table-3",
        caption="What the mask head reads (coordinates, features or both), and mask AP and AR on COCO val2017.",
        columns=(Column("absolute"), Column("relative"), Column("features"), *MASK_AP, *MASK_AR),
        rows=(
            (False, False, True, 31.4, 53.5, 32.1, 15.6, 34.4, 44.7, 28.4, 44.1, 46.2),
            (False, True, False, 31.3, 54.9, 31.8, 16.0, 34.2, 43.6, 27.1, 43.3, 45.7),
            (True, False, True, 32.0, 53.3, 32.9, 14.7, 34.2, 46.8, 28.7, 44.7, 46.8),
            (False, True, True, 35.7, 56.3, 37.8, 17.1, 39.1, 50.2, 30.4, 48.8, 51.5),
        ),
        notes="absolute, relative: the coordinates that are given; features: whether F_mask is.",
    ),
    Table(
        id="condinst-eccv:table-4",
        caption="Factor by which the mask logits are upsampled, and the mask AP on COCO val2017.",
        columns=(Column("factor"), Column("resolution", "of the input"), *MASK_AP),
        rows=(
            (1, "1/8", 34.4, 55.4, 36.2, 15.1, 38.4, 50.8),
            (2, "1/4", 35.8, 56.4, 38.0, 17.0, 39.3, 51.1),
            (4, "1/2", 35.7, 56.3, 37.8, 17.1, 39.1, 50.2),
        ),
    ),
    Table(
        id="condinst-eccv:table-5",
        caption="Duplicates removed by the IoU of boxes or of masks, and the mask AP on COCO val2017.",
        columns=(Column("NMS"), *MASK_AP),
        rows=(
            ("box", 35.7, 56.3, 37.8, 17.1, 39.1, 50.2),
            ("mask", 35.7, 56.7, 37.7, 17.2, 39.2, 50.5),
        ),
    ),
    Table(
        id="condinst-eccv:table-6",
        caption="CondInst among other methods on COCO test-dev.",
        columns=(
            Column("method"),
            Column("backbone"),
            Column("augmented"),
            Column("schedule", "90 000 iterations"),
            *MASK_AP,
        ),
        rows=(
            ("Mask R-CNN", "R-50-FPN", False, "1x", 34.6, 56.5, 36.6, 15.4, 36.3, 49.7),
            ("CondInst", "R-50-FPN", False, "1x", 35.4, 56.4, 37.6, 18.4, 37.9, 46.9),
            ("Mask R-CNN*", "R-50-FPN", True, "1x", 35.5, 57.0, 37.8, 19.5, 37.6, 46.0),
            ("Mask R-CNN*", "R-50-FPN", True, "3x", 37.5, 59.3, 40.2, 21.1, 39.6, 48.3),
            ("TensorMask", "R-50-FPN", True, "6x", 35.4, 57.2, 37.3, 16.3, 36.8, 49.3),
            ("CondInst", "R-50-FPN", True, "1x", 35.9, 56.9, 38.3, 19.1, 38.6, 46.8),
            ("CondInst", "R-50-FPN", True, "3x", 37.8, 59.1, 40.5, 21.0, 40.3, 48.7),
            ("CondInst w/ sem.", "R-50-FPN", True, "3x", 38.8, 60.4, 41.5, 21.1, 41.1, 51.0),
            ("Mask R-CNN", "R-101-FPN", True, "6x", 38.3, 61.2, 40.8, 18.2, 40.6, 54.1),
            ("Mask R-CNN*", "R-101-FPN", True, "3x", 38.8, 60.9, 41.9, 21.8, 41.4, 50.5),
            ("YOLACT-700", "R-101-FPN", True, "4.5x", 31.2, 50.6, 32.8, 12.1, 33.3, 47.1),
            ("TensorMask", "R-101-FPN", True, "6x", 37.1, 59.3, 39.4, 17.4, 39.1, 51.6),
            ("CondInst", "R-101-FPN", True, "3x", 39.1, 60.9, 42.0, 21.5, 41.7, 50.9),
            ("CondInst w/ sem.", "R-101-FPN", True, "3x", 40.1, 62.1, 43.1, 21.8, 42.7, 52.6),
        ),
        notes="augmented: several image scales in training; *: Detectron2's version; w/ sem.: with the semantic task.",
    ),
)
