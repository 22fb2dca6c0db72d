"""Tables of AdaptIS: figures as printed, captions ours."""

from condinst_edu.papers.forms import PQ, Column, Table

STUFF_FIRST = (PQ[0], PQ[2], PQ[1])  # the order in which this paper prints them

TABLES = (
    Table(
        id="adaptis:table-1",
        caption="AdaptIS and Mask R-CNN on the toy problem, by IoU threshold.",
        columns=(Column("method"), *(Column(f"AP@{iou}", "%") for iou in (0.5, 0.7, 0.8, 0.9))),
        rows=(
            ("Mask R-CNN", 74.6, 59.4, 43.8, 5.8),
            ("AdaptIS", 99.6, 99.2, 98.8, 97.5),
        ),
    ),
    Table(
        id="adaptis:table-2",
        caption="AdaptIS among other methods on Cityscapes val.",
        columns=(
            Column("method"),
            Column("pre-training"),
            Column("backbone"),
            Column("m/s test"),
            *STUFF_FIRST,
            Column("mIoU", "%"),
            Column("AP", "%"),
        ),
        rows=(
            ("Mask R-CNN", "ImageNet", "ResNet-50", None, None, None, None, None, 31.5),
            ("Mask R-CNN", "ImageNet+COCO", "ResNet-50", None, None, None, None, None, 36.4),
            ("TASCNet", "ImageNet", "ResNet-50", None, 55.9, 59.8, 50.6, None, None),
            ("UPSNet", "ImageNet", "ResNet-50", None, 59.3, 62.7, 54.6, 75.2, 33.3),
            ("CRF + PSPNet", "ImageNet", "ResNet-101", None, 53.8, 62.1, 42.5, 71.6, None),
            ("Panoptic FPN", "ImageNet", "ResNet-101", None, 58.1, 62.5, 52.0, 75.7, 33.0),
            ("DeeperLab", "ImageNet", "Xception-71", None, 56.5, None, None, None, None),
            ("TASCNet", "ImageNet+COCO", "ResNet-50", None, 59.2, 61.5, 56.0, 77.8, 37.6),
            ("TASCNet-multiscale", "ImageNet+COCO", "ResNet-50", "+/-", 60.4, 63.3, 56.1, 78.0, 39.0),
            ("MRCNN + PSPNet", "ImageNet+COCO", "ResNet-101", None, 61.2, 66.4, 54, None, 36.4),
            ("UPSNet", "ImageNet+COCO", "ResNet-101", None, 60.5, 63.0, 57.0, 77.8, 37.8),
            ("UPSNet-multiscale", "ImageNet+COCO", "ResNet-101", "+/-", 61.8, 64.8, 57.6, 79.2, 39.0),
            ("AdaptIS (ours)", "ImageNet", "ResNet-50", None, 59.0, 61.3, 55.8, 75.3, 32.3),
            ("AdaptIS (ours)", "ImageNet", "ResNet-101", None, 60.6, 62.9, 57.5, 77.2, 33.9),
            ("AdaptIS (ours)", "ImageNet", "ResNeXt-101", None, 62.0, 64.4, 58.7, 79.2, 36.3),
        ),
        notes="m/s test: at several scales; the signs as printed.",
    ),
    Table(
        id="adaptis:table-3",
        caption="AdaptIS among other methods on Mapillary val.",
        columns=(Column("method"), Column("backbone"), *STUFF_FIRST),
        rows=(
            ("JSIS-Net", "ResNet-50", 17.6, 27.5, 10.0),
            ("DeeperLab", "Xception-71", 31.9, None, None),
            ("TASCNet", "ResNet-50", 30.7, 33.4, 28.6),
            ("AdaptIS", "ResNet-50", 32.0, 39.1, 26.6),
            ("AdaptIS", "ResNet-101", 33.4, 40.2, 28.3),
            ("AdaptIS", "ResNeXt-101", 35.9, 41.9, 31.5),
        ),
        notes="The paper names the first three by their references, [6], [28] and [17].",
    ),
    Table(
        id="adaptis:table-4",
        caption="The first three of the leaderboard on Mapillary test-dev.",
        columns=(Column("team"), *STUFF_FIRST),
        rows=(
            ("liuxu", 41.1, 45.6, 37.8),
            ("jie.li", 38.6, 38.2, 38.9),
            ("AdaptIS", 36.8, 41.4, 33.3),
        ),
    ),
    Table(
        id="adaptis:table-5",
        caption="AdaptIS among other methods on COCO val.",
        columns=(Column("method"), Column("backbone"), Column("m/s test"), *STUFF_FIRST),
        rows=(
            ("JSIS-Net", "ResNet-50", None, 26.9, 23.3, 29.3),
            ("AUNet", "ResNet-50", None, 39.6, 25.2, 49.1),
            ("DeeperLab", "Xception-71", None, 33.8, None, None),
            ("UPSNet", "ResNet-101", None, 42.5, 33.4, 48.5),
            ("UPSNet-ms", "ResNet-101", "+", 43.2, 34.1, 49.1),
            ("AdaptIS", "ResNet-50", None, 35.9, 29.3, 40.3),
            ("AdaptIS", "ResNet-101", None, 37.0, 29.9, 41.8),
            ("AdaptIS", "ResNeXt-101", None, 42.3, 31.8, 49.2),
        ),
        notes="m/s test: at several scales.",
    ),
    Table(
        id="adaptis:table-6",
        caption="AdaptIS among other methods on COCO test-dev.",
        columns=(Column("method"), Column("backbone"), *STUFF_FIRST),
        rows=(
            ("JSIS-Net", "ResNet-50", 27.2, 23.4, 29.6),
            ("AUNet", "ResNeXt-152-FPN", 46.5, 32.5, 55.9),
            ("UPSNet-ms", "ResNet-101-FPN", 46.6, 36.7, 53.2),
            ("AdaptIS", "ResNeXt-101", 42.8, 31.8, 50.1),
        ),
    ),
    Table(
        id="adaptis:table-7",
        caption="The loss, and Relative CoordConv, on Cityscapes with ResNet-50.",
        columns=(Column("loss"), Column("relative CoordConv"), *STUFF_FIRST),
        rows=(
            ("NFL", True, 59.0, 61.3, 55.8),
            ("NFL", False, 53.9, 61.7, 43.1),
            ("FL", True, 55.9, 60.1, 50.1),
            ("BCE", True, 58.7, 61.5, 54.8),
        ),
        notes="NFL: normalized focal loss; FL: focal loss; BCE: binary cross-entropy.",
    ),
)
