"""How many threads train fastest on this machine, just now."""

import time

import torch

from condinst_edu.engine.recipe import Recipe, build_model
from condinst_edu.engine.schedule import build_optimizer
from condinst_edu.engine.train import open_split, step, train_batches


def probe_rate(recipe: Recipe, steps: int = 6, device: str = "cpu") -> float:
    """Iterations per second on this machine with torch's present number of threads, from a few throw-away steps."""
    dataset = open_split(recipe, "train")
    model = build_model(recipe.model, len(dataset.category_ids), recipe.model_args)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, recipe)
    begin = 0.0
    for iteration, (images, targets) in enumerate(train_batches(recipe, dataset, model, 0, steps + 2, device)):
        if iteration == 2:  # the first steps warm up
            begin = time.monotonic()
        step(model, optimizer, recipe.clip, images, targets)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return steps / (time.monotonic() - begin)


def choose_threads(recipe: Recipe) -> float:
    """Set torch's number of threads to one, two or all, whichever is fastest just now; returns iterations per second.

    On a busy machine several threads that wait for each other are many times slower than one.
    """
    rates = {}
    most = torch.get_num_threads()
    for threads in sorted({1, min(2, most), most}):
        torch.set_num_threads(threads)
        rates[threads] = probe_rate(recipe)
    torch.set_num_threads(max(rates, key=rates.__getitem__))
    return max(rates.values())
