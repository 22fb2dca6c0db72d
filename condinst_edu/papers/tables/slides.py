"""Figures of the tutorial slides: as printed, captions ours. They also show the conference version's tables 1 to 6."""

from condinst_edu.papers.forms import Column, Table

TABLES = (
    Table(
        id="slides:table-real-time",
        caption="BlendMask's real-time model beside others.",
        columns=(Column("method"), Column("resolution"), Column("time", "ms"), Column("AP", "%")),
        rows=(
            ("YOLACT", "550x550", 34.2, 29.8),
            ("Mask R-CNN", "550x*", 63.4, 35.3),
            ("BlendMask", "512x*", 31.2, 36.3),
        ),
    ),
    Table(
        id="slides:table-solo-gains",
        caption="What parts of SOLO add to its mask AP.",
        columns=(Column("part"), Column("gain", "points")),
        rows=(("grid number", 1.8), ("several levels", 6.8), ("CoordConv", 3.6)),
    ),
)
