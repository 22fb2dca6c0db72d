"""Tables of the papers in miniature, and the two commands on the papers: reproduce and trace."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import fails
from test_engine import SAMPLE
from torch import nn

from condinst_edu.engine.checkpoint import load_model
from condinst_edu.engine.recipe import Recipe, build_model, override_model
from condinst_edu.errors import UserError
from condinst_edu.papers import ITEMS, TABLES
from condinst_edu.papers import reproduce as miniature
from condinst_edu.papers.miniatures import DEFAULT, MINIATURES, Row, label, printed
from condinst_edu.papers.reproduce import Run, Settings, base_recipe, iterations_within, reproduce, score
from condinst_edu.papers.toy_score import THRESHOLDS
from condinst_edu.recipes import get_recipe
from condinst_edu.teach.tiny import load_tiny

SMALL = (
    "backbone_options.widths=(4, 4, 8, 8, 8)",
    "channels=8",
    "head.tower_convs=1",
    "bottom.channels=8",
    "bottom.convs=1",
)
TOY = (
    "backbone_options.width=4",
    "backbone_options.depth=2",
    "backbone_options.finest=0",
    "branch_width=4",
    "points=2",
    "limit=2",
)
SMALLER = {
    "shapes-condinst": SMALL,
    "shapes-dr1mask": (*SMALL[:3], "basis.width=4"),
    "shapes-panoptic-dr1mask": SMALL[:3],
    "shapes-solo": (*SMALL[:2], "head.channels=8", "head.convs=1"),
    "bacteria-adaptis": TOY,
}
# What has to run at small scale, and what else does: two more slides, AdaptIS's toy problem in full.
ALL_MINIATURES = {f"condinst:table-{n}" for n in ("1a", "1b", "2", "3", "4", "5")}
ALL_MINIATURES |= {f"dr1mask:table-{n}" for n in range(1, 8)} | {"adaptis:table-7", "slides:solo-grid-number"}
MORE = {"slides:solo-levels", "slides:solo-coordconv", "adaptis:table-1"}


class Fake:
    """Trainings that take no time and can be killed; a model scores its number of iterations, plus its seed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []  # the folder of each
        self.starts: list[str] = []
        self.kill_after: int | None = None
        self.bars: list[float] = []
        for name, substitute in (("train", self.train), ("score", self.score), ("write_start", self.note_start)):
            monkeypatch.setattr(miniature, name, substitute)
        monkeypatch.setattr(miniature, "choose_threads", lambda recipe: 1.0)
        monkeypatch.setattr(miniature.Run, "model", lambda run: run.row)

    def train(self, recipe: Recipe, out: Path, device: str, on_step: Callable[[int, Any], None], **_: object) -> None:
        out.mkdir(parents=True, exist_ok=True)
        last = out / "last.pt"
        for done in range(int(last.read_text()) if last.exists() else 0, recipe.iterations):
            if self.kill_after == len(self.steps):
                raise KeyboardInterrupt
            self.steps.append(out.name)
            last.write_text(str(done + 1))
            on_step(done + 1, None)

    def score(self, row: Any, recipe: Recipe, device: str) -> dict[str, float]:
        return {"AP": float(recipe.iterations + recipe.seed + 10 * len(row.train)), "AP75": 1.0}

    def note_start(self, recipe: Recipe, path: Path) -> None:
        self.starts.append(path.parent.name)

    @property
    def models(self) -> int:
        return len(set(self.steps))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def quick(out: Path, **changes: Any) -> Settings:
    return Settings(**{"seeds": 2, "iterations": 5, "data": SAMPLE, "out": out, **changes})


# --------------------------------------------------------------------------------------------------------------- rows


def test_every_table_for_a_laptop_can_be_run() -> None:
    assert set(MINIATURES) >= ALL_MINIATURES | MORE
    others = set(MINIATURES) - ALL_MINIATURES - MORE
    assert all(name.startswith("condinst-eccv:") for name in others)  # they share the journal's models
    assert set(MINIATURES) <= ITEMS.keys()


def test_every_row_of_a_miniature_builds() -> None:
    """As many rows as in the paper and with names, in most tables one of them the recipe's own; each can be built."""
    without = ("dr1mask:table-1", "dr1mask:table-3", "slides:solo-grid-number")  # the recipe's own row
    for name, table in MINIATURES.items():
        recipe = base_recipe(table, Settings(1, 1, SAMPLE, extra=SMALLER[table.recipe]))
        if name in TABLES:
            assert len(table.rows) == len(TABLES[name].rows) - table.skip + len(table.names)
        assert table.rows.count(DEFAULT) == (name not in without)
        labels = [label(name, i) for i in range(len(table.rows))]
        assert len(set(labels)) == len(labels)
        assert all(labels)
        for row in table.rows:
            row_recipe = override_model(recipe, row.train + row.test)
            build_model(row_recipe.model, 1 if recipe.drawn != "none" else 13, row_recipe.model_args)


def test_rows_follow_the_papers_rows() -> None:
    """The arguments of a row say what the paper's row says; the recipe's own row is where the paper's default is."""
    for name, key in (("table-1a", "depth"), ("table-1b", "width"), ("table-2", "C_bottom"), ("table-4", "factor")):
        rows = MINIATURES[f"condinst:{name}"].rows
        numbers = [printed(f"condinst:{name}", i)[key] for i in range(len(rows))]
        default = {"depth": 3, "width": 8, "C_bottom": 8, "factor": 2}[key]
        assert [int(row.train[0].split("=")[1]) if row.train else default for row in rows] == numbers
    widths = [printed("dr1mask:table-6", i)["width"] for i in range(3)]
    ours = [
        override_model(get_recipe("shapes-panoptic-dr1mask"), row.train) for row in MINIATURES["dr1mask:table-6"].rows
    ]
    assert [4 * recipe.model_args["basis"]["width"] for recipe in ours] == widths


def test_toy_rows_build_and_follow_the_paper() -> None:
    """Table 7's first four say what the paper's say; the other two say what their names say."""
    names = {"NFL": "nfl", "FL": "focal", "BCE": "bce"}
    for i, row in enumerate(MINIATURES["adaptis:table-7"].rows):
        args = override_model(get_recipe("bacteria-adaptis"), row.train).model_args
        coordinates = args.get("head", {}).get("coordinates", True)
        if paper := printed("adaptis:table-7", i):
            assert (args.get("loss", "nfl"), coordinates) == (names[paper["loss"]], paper["relative CoordConv"])
        else:
            loss, _, rest = label("adaptis:table-7", i).partition(", ")
            assert (args["loss"], coordinates, rest) == (names[loss], False, "without coordinates")


def test_paddings_of_the_padding_table_differ() -> None:
    """No two of Table 5's rows may see the same padded images, or they would be one model."""
    table = MINIATURES["dr1mask:table-5"]
    recipe = base_recipe(table, Settings(data=SAMPLE))
    (side,) = recipe.short_sides
    divisors = [override_model(recipe, row.train).model_args.get("divisor", 4) for row in table.rows]
    assert len({-(-side // divisor) * divisor for divisor in divisors}) == 3


# ------------------------------------------------------------------------------------------------------------ running


def test_reproduce_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Really trained, from random weights."""
    settings = quick(tmp_path, iterations=2, extra=SMALL, scratch=True)
    result = reproduce("condinst table-5", settings)
    assert json.loads((tmp_path / "condinst-table-5.json").read_text()) == result
    assert [row["name"] for row in result["rows"]] == ["box", "mask"]
    assert [row["test"] for row in result["rows"]] == [[], ["nms=mask"]]
    assert all(len(row["scores"]["AP"]) == 2 for row in result["rows"])
    assert result["models"] == 2  # not 4: Table 5 has one model for each seed
    left = {path.name for folder in tmp_path.iterdir() if folder.is_dir() for path in folder.iterdir()}
    assert left == {"model.safetensors", "run.json", "recipe.json", "log.jsonl"}  # nothing that goes on with it
    assert result["seconds"] > 0
    assert result["start"] == "random weights"
    printed_text = capsys.readouterr().out
    assert "35.6" in printed_text
    assert "too few seeds" in printed_text


def test_mask_nms_is_used_where_the_row_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the second row of Table 5 removes duplicates by their masks; the weights are the same."""
    used: list[tuple[str, float]] = []

    def note(model: Any, *_: object) -> dict[str, float]:
        used.append((model.nms, sum(p.double().sum().item() for p in model.parameters())))
        return {"AP": 50.0}

    monkeypatch.setattr(miniature, "score", note)
    reproduce("condinst:table-5", quick(tmp_path, seeds=1, iterations=1, extra=SMALL, scratch=True))
    assert [nms for nms, _ in used] == ["box", "mask"]
    assert used[0][1] == used[1][1]


def test_rows_that_tables_share_are_trained_once(tmp_path: Path, fake: Fake) -> None:
    reproduce("condinst:table-5", quick(tmp_path))
    assert fake.models == 2
    for table, models in (("condinst:table-4", 6), ("condinst:table-3", 12), ("condinst:table-4", 12)):
        result = reproduce(table, quick(tmp_path))
        assert fake.models == models
        assert len(fake.steps) == 5 * models
    assert result["rows"][1]["scores"]["AP"] == [5, 6]
    assert result["models"] == 6
    reproduce("condinst-eccv:table-3", quick(tmp_path))
    assert fake.models == 12
    assert len(fake.starts) == 12


def test_what_decides_the_weights_decides_the_folder(tmp_path: Path) -> None:
    """Other data or another place is no other training; iterations, seed, device, start and arguments are."""
    recipe = get_recipe("shapes-condinst")
    one = Run(DEFAULT, recipe, 0, quick(tmp_path)).folder.name
    same = [
        Run(Row(test=("nms=mask",)), recipe, 0, quick(tmp_path)),
        Run(DEFAULT, dataclasses.replace(recipe, data=Path("elsewhere"), workers=3), 0, quick(tmp_path / "there")),
        Run(DEFAULT, recipe, 0, quick(tmp_path, seeds=9, publish=True)),
    ]
    other = [
        Run(Row(("factor=4",)), recipe, 0, quick(tmp_path)),
        Run(DEFAULT, recipe, 1, quick(tmp_path)),
        Run(DEFAULT, dataclasses.replace(recipe, iterations=7), 0, quick(tmp_path)),
        Run(DEFAULT, dataclasses.replace(recipe, lr=1e-4), 0, quick(tmp_path)),
        Run(DEFAULT, recipe, 0, quick(tmp_path, device="cuda:1")),
        Run(DEFAULT, recipe, 0, quick(tmp_path, scratch=True)),
    ]
    assert {run.folder.name for run in same} == {one}
    assert len({one, *(run.folder.name for run in other)}) == 1 + len(other)


def test_what_a_table_changes_in_its_recipe_wins() -> None:
    """Models that start from the tiny FCOS take a small step, unless the table says otherwise."""
    kept, changed = MINIATURES["condinst:table-3"], MINIATURES["slides:solo-levels"]
    assert (base_recipe(kept, Settings()).lr, base_recipe(kept, Settings()).batch_size) == (3e-3, 4)
    assert base_recipe(kept, Settings(scratch=True)).lr == get_recipe(kept.recipe).lr
    assert (base_recipe(changed, Settings()).lr, base_recipe(changed, Settings()).batch_size) == (5e-3, 8)


def test_a_killed_run_goes_on(tmp_path: Path, fake: Fake) -> None:
    """In the midst of a training of the second seed: the first seed's result is there, no step is done twice."""
    fake.kill_after = 4 * 5 + 7
    with pytest.raises(KeyboardInterrupt):
        reproduce("condinst:table-3", quick(tmp_path))
    first = json.loads((tmp_path / "condinst-table-3.json").read_text())
    assert first["seeds"] == 1
    assert "--seeds 1" in first["command"]
    assert [row["scores"]["AP"] for row in first["rows"]] == [[15], [15], [15], [5]]
    fake.kill_after = None
    result = reproduce("condinst:table-3", quick(tmp_path))
    assert len(fake.steps) == 2 * 4 * 5
    assert [row["scores"]["AP"] for row in result["rows"]] == [[15, 16], [15, 16], [15, 16], [5, 6]]


def test_the_bar_counts_all_trainings(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of all rows and seeds, those of earlier calls among them; it is full at the end."""
    bars: list[Any] = []
    plain_bar = miniature.progress_bar

    def note() -> Any:
        bars.append(plain_bar())
        return bars[-1]

    monkeypatch.setattr(miniature, "progress_bar", note)
    fake.kill_after = 12  # two models and two steps of the third
    with pytest.raises(KeyboardInterrupt):
        reproduce("condinst:table-4", quick(tmp_path))
    fake.kill_after = 13
    with pytest.raises(KeyboardInterrupt):
        reproduce("condinst:table-4", quick(tmp_path))
    assert [bar.tasks[0].completed for bar in bars] == [12, 13]
    fake.kill_after = None
    reproduce("condinst:table-4", quick(tmp_path))
    assert (bars[-1].tasks[0].completed, bars[-1].tasks[0].total) == (30, 30)


def test_seeds_can_be_added(tmp_path: Path, fake: Fake) -> None:
    reproduce("condinst:table-4", quick(tmp_path, seeds=1))
    assert fake.models == 3
    result = reproduce("condinst:table-4", quick(tmp_path, seeds=3))
    assert fake.models == 9
    assert result["rows"][1]["scores"]["AP"] == [5, 6, 7]


def test_publish_stores_the_result_in_the_repository(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miniature, "RESULTS", tmp_path / "results")
    reproduce("condinst:table-4", quick(tmp_path / "out"))
    assert not (tmp_path / "results").exists()
    result = reproduce("condinst:table-4", quick(tmp_path / "out", publish=True))
    assert json.loads((tmp_path / "results" / "condinst-table-4.json").read_text()) == result
    facts = {"command", "date", "seeds", "iterations", "seconds", "device", "threads", "torch", "data", "start"}
    assert facts <= result.keys()
    assert str(tmp_path) not in json.dumps(result)
    assert result["command"] == "condinst-edu reproduce condinst:table-4 --seeds 2 --iterations 5"


def test_models_start_from_the_tiny_fcos(tmp_path: Path) -> None:
    """All that a model shares with it is its own, the pyramid level by level; the rest is random, seed by seed."""
    trained = load_tiny("fcos").model.state_dict()
    for name, prefix in (("condinst", "fcos."), ("panoptic-dr1mask", "instances.fcos."), ("solo", "")):
        recipe = dataclasses.replace(get_recipe(f"shapes-{name}"), data=SAMPLE)
        starts = []
        for seed in range(2):
            miniature.write_start(dataclasses.replace(recipe, seed=seed), tmp_path / "start.safetensors")
            starts.append(load_model(tmp_path / "start.safetensors").model.state_dict())
        for key, tensor in trained.items():
            if key.startswith("head.") and name == "solo":
                continue
            for level in (2, 1, 0):  # P5 is the last in both
                key = key.replace(f"fpn.lateral.{level}", f"fpn.lateral.{level + 1}")
                key = key.replace(f"fpn.output.{level}", f"fpn.output.{level + 1}")
            assert torch.equal(starts[0][prefix + key], tensor)
        miniature.write_start(dataclasses.replace(recipe, seed=0), tmp_path / "again.safetensors")
        again = load_model(tmp_path / "again.safetensors").model.state_dict()
        assert all(torch.equal(tensor, again[key]) for key, tensor in starts[0].items())
        random = {key for key in starts[0] if not torch.equal(starts[0][key], starts[1][key])}
        assert {f"{prefix}fpn.lateral.0.weight"} < random
        assert not random & {prefix + key for key in trained if not key.startswith(("fpn", "head"))}
    recipe = override_model(dataclasses.replace(get_recipe("shapes-condinst"), data=SAMPLE), SMALL[:1])
    with pytest.raises(UserError, match="does not fit this model: --scratch starts without it"):
        miniature.write_start(recipe, tmp_path / "other.safetensors")


def test_shapes_are_written_where_they_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def note(out: Path, **_: object) -> None:
        assert out == tmp_path / "data"
        raise Enough

    monkeypatch.setattr(miniature, "write_shapes", note)
    with pytest.raises(Enough):
        reproduce("condinst:table-1a", Settings(1, 1, tmp_path / "data", tmp_path / "out"))


# ------------------------------------------------------------------------------------------------------------- scores


class Silent(nn.Module):
    """Finds nothing in any image."""

    def __init__(self, panoptic: bool) -> None:
        super().__init__()
        self.panoptic = panoptic

    def forward(self, images: list[torch.Tensor], output_sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
        if self.panoptic:
            return [{"panoptic": torch.zeros(size, dtype=torch.int32), "segments_info": []} for size in output_sizes]
        empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
        return [{**empty, "masks": torch.zeros(0, *size, dtype=torch.bool)} for size in output_sizes]


def test_scores_have_the_names_of_the_tables_columns() -> None:
    """Each claim's score is among those that its models are scored by."""
    scored = {}
    for name in ("shapes-condinst", "shapes-panoptic-dr1mask"):
        recipe = dataclasses.replace(get_recipe(name), data=SAMPLE)
        scored[name] = score(Silent("panoptic" in name), recipe, "cpu")
        assert set(scored[name].values()) == {0}
    scored["bacteria-adaptis"] = {f"AP@{threshold}": 0.0 for threshold in THRESHOLDS}
    for recipe_name in ("shapes-dr1mask", "shapes-solo"):
        scored[recipe_name] = scored["shapes-condinst"]
    for table in MINIATURES.values():
        assert all(claim.score in scored[table.recipe] for claim in table.claims)


def test_toy_table_in_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(miniature, "TEST_IMAGES", 2)
    result = reproduce("adaptis table-1", Settings(1, 2, SAMPLE, tmp_path, extra=TOY))
    assert set(result["rows"][0]["scores"]) == {"AP@0.5", "AP@0.7", "AP@0.8", "AP@0.9"}
    printed_text = capsys.readouterr().out
    assert "99.6" in printed_text
    assert "97.5" in printed_text


# ------------------------------------------------------------------------------------------------------------- budget


def test_iterations_follow_from_the_budget() -> None:
    """Worked out by hand: 3 seeds of models that make 10, 5 and 20 steps a second, 4 rows scored for 2 s each."""
    # 1200 - 3 * 4 * 2 = 1176 s for trainings, of which an iteration of all takes 3 * (0.1 + 0.2 + 0.05) = 1.05 s
    assert iterations_within(1200, [10, 5, 20], seeds=3, rows=4, scoring=2) == 1120
    assert iterations_within(1199, [10, 5, 20], seeds=3, rows=4, scoring=2) == 1110
    assert iterations_within(6, [4], seeds=1, rows=1, scoring=1) == 20
    with pytest.raises(UserError, match="1 models with 1 seeds do not fit"):
        iterations_within(5.9, [4], seeds=1, rows=1, scoring=1)  # for 19.6
    with pytest.raises(UserError, match="3 models with 3 seeds do not fit into the budget: 1 minutes and more do"):
        iterations_within(30, [10, 5, 20], seeds=3, rows=4, scoring=2)


def test_a_budget_is_measured_once(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model's speed, not each row's; a run that was killed goes on with the iterations that it began with."""
    probed: list[dict[str, Any]] = []

    def rate(recipe: Recipe, device: str) -> float:
        probed.append(recipe.model_args)
        return 10 / (1 + len(probed))  # slower and slower

    monkeypatch.setattr(miniature, "probe_rate", rate)
    settings = quick(tmp_path, iterations=None, budget=200.0)
    fake.kill_after = 3
    with pytest.raises(KeyboardInterrupt):
        reproduce("condinst:table-5", settings)
    assert len(probed) == 1
    fake.kill_after = None
    result = reproduce("condinst:table-5", settings)
    assert len(probed) == 1
    assert len(fake.steps) == 2 * result["iterations"]
    assert result["iterations"] % 10 == 0
    assert "--budget 200s" in result["command"]
    reproduce("condinst:table-5", dataclasses.replace(settings, seeds=1))  # another plan
    assert len(probed) == 2


# ------------------------------------------------------------------------------------------------------- command line


def test_bad_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["trace", "condinst:eq-22"], "did you mean condinst:eq-2")
    fails(capsys, ["reproduce", "condinst:tabel-3"], "did you mean condinst:table-3")
    fails(capsys, ["reproduce", "condinst:table-6"], "it has no miniature: choose from condinst:table-1a")
    fails(capsys, ["reproduce", "condinst:table-5", "--seeds", "0"], "seeds and iterations start at 1, not 0")
    fails(capsys, ["reproduce", "condinst:table-5", "--set", "colour=red"], "condinst has no argument 'colour'")
    fails(capsys, ["reproduce", "condinst:table-5", "--budget", "soon"], "written as 90s, 10m or 1.5h")
    for time in ("0s", "-5m", "nanm", "infh"):
        fails(capsys, ["reproduce", "condinst:table-5", "--budget", time], "a time is more than nothing")
    both = ["--budget", "10m", "--iterations", "9"]
    fails(capsys, ["reproduce", "condinst:table-5", *both], "--budget or --iterations")
    (tmp_path / "file").write_text("")
    fails(capsys, ["reproduce", "condinst:table-5", "--out", str(tmp_path / "file" / "x")], "cannot write")
