"""Recipes for AdaptIS's toy problem, on images that are drawn while it trains (`condinst_edu.datasets.bacteria`)."""

from condinst_edu.engine.recipe import Recipe


def bacteria_adaptis() -> Recipe:
    """Tiny AdaptIS for ten minutes of a laptop."""
    return Recipe(
        model="adaptis",
        model_args={
            "backbone": "unet",
            "backbone_options": {"width": 16, "max_width": 64},
            "branch_width": 16,
            "points": 6,
        },
        drawn="bacteria",
        workers=0,
        short_sides=(),
        test_short_side=None,
        vertical_flip=0.5,
        iterations=1500,
        batch_size=4,
        optimizer="adamw",
        lr=3e-3,
        clip=5.0,
        schedule="cosine",
        warmup=0.1,
        save_every=500,
    )
