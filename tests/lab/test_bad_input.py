"""What a view is given that it cannot show: one sentence that says what is wrong, and the rest goes on working."""

import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load

import workbench as wb
from workbench.config import DataConfig, load_config
from workbench.features.extract import extract
from workbench.features.grid import real_numbers
from workbench.features.projection import project
from workbench.lab.sources import choose
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.store import Run, prepare_run
from workbench.training.loop import fit

TINY = (
    *("data.name=digits", "data.source=auto", "data.limit=80", "vae.name=identity", "backbone.patch=8"),
    *("backbone.size=pico", "training.steps=4", "training.batch=8", "training.log_every=1"),
    *("training.checkpoint_every=2", "training.milestone_every=2"),
    # In great leaps, or no gate would open in so few steps.
    *("training.learning_rate=0.02", "training.warmup_steps=0", "training.ema=0.1"),
)
FEW = {"layers": [1, 6, 12], "times": [0.3, 0.7]}


def quiet(*told):
    pass


def trained(root, *changes: str) -> Run:
    config = load_config("demo/plain", (*TINY, *changes))
    for _ in fit(config, root):
        pass
    return prepare_run(config, root)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        "narrow": trained(root, "name=narrow"),
        "wide": trained(root, "name=wide", "backbone.size=nano"),
        "coarse": trained(root, "name=coarse", "backbone.patch=16"),
    }


@pytest.fixture(autouse=True)
def here(runs, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs["narrow"].folder.parent))


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of the narrow run, with the latents it looks at, to be spoilt."""
    shutil.copytree(runs["narrow"].folder.parent / ".latents", tmp_path / ".latents")
    shutil.copytree(runs["narrow"].folder, tmp_path / "copy")
    return Run(tmp_path / "copy")


def rewrite(run: Run, change) -> None:
    """Give the last checkpoint other weights, as a second training would."""
    last = run.checkpoint()
    parts = {name: load((last.folder / f"{name}.safetensors").read_bytes()) for name in ("ema", "model")}
    changed = {name: {key: change(key, value.clone()) for key, value in part.items()} for name, part in parts.items()}
    shutil.rmtree(last.folder)
    save_checkpoint(
        run.folder / "checkpoints", last.step, changed, {k: v for k, v in last.state.items() if k != "files"}
    )


def arrays(view) -> dict[str, np.ndarray]:
    return {f"{pane.title} {name}": array for pane in view.panes for name, array in pane.arrays.items()}


VIEWS = {
    "maps": lambda run, **more: wb.maps(run, **{"images": 3, **FEW, **more}, progress=quiet),
    "compare_maps": lambda run, **more: wb.compare_maps([run, "vae"], **{"images": 3, **FEW, **more}, progress=quiet),
    "embedding": lambda run, **more: wb.embedding(run, **{"images": 20, "mapped": 2, **FEW, **more}, progress=quiet),
    "separability": lambda run, **more: wb.separability(run, **{"images": 40, **FEW, **more}, progress=quiet),
    "leakage": lambda run, **more: wb.leakage(run, **{"images": 40, **FEW, **more}, progress=quiet),
    "explore": lambda run, **more: wb.explore(run, **{"images": 40, "mapped": 2, **FEW, **more}, progress=quiet),
}


PLAIN = {name: getattr(wb, name) for name in VIEWS}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"layers": [1, 13]}, r"layers has 13; allowed are 0 \(the patch embedding\) to 12, the last block"),
        ({"layers": [-1]}, "layers has -1; allowed are 0"),
        ({"layers": []}, "layers has empty; allowed are 0"),
        ({"times": [0.3, 1.2]}, "times has 1.2; allowed are 0 to 1"),
        ({"times": [-0.1]}, "times has -0.1; allowed are 0 to 1"),
        ({"times": [float("nan")]}, "times has nan; allowed are 0 to 1"),
        ({"times": []}, "times has nothing; allowed are 0 to 1"),
        ({"images": 0}, "images is 0; allowed are 1 to 80, or row numbers"),
        ({"images": []}, "images has 0 row numbers; allowed are distinct ones from 0 to 79"),
        ({"components": 0}, "components is 0; allowed are 3, one for each colour, to 32"),
        ({"page_mb": 0.05}, "the page of this view would have .* MB .*, more than 0.05: ask for fewer of"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_runs(runs, name, given, sentence, monkeypatch):
    monkeypatch.setattr("workbench.lab.sources.extract", None)  # it would be called first
    with pytest.raises(ValueError, match=sentence):
        VIEWS[name](runs["narrow"], **given)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("maps", {"w": (5.0, 1.0)}, r"w is \(5.0, 1.0\); allowed are the lowest and a higher value"),
        ("compare_maps", {"w": (0.0, float("nan"))}, "w has nan; allowed are finite numbers"),
        ("embedding", {"stops": []}, "stops has nothing; allowed are finite numbers"),
        (
            "embedding",
            {"methods": ["tnse"]},
            r"methods is \['tnse'\]; allowed are one or more of pca, tsne, umap, as a list",
        ),
        ("embedding", {"mapped": -1}, "mapped is -1; allowed are a count of at least 1"),
        ("explore", {"stops": [float("inf")]}, "stops has inf; allowed are finite numbers"),
        ("separability", {"scales": [float("nan")]}, "scales has nan; allowed are finite numbers"),
        ("leakage", {"scales": []}, "scales has nothing; allowed are finite numbers"),
    ],
)
def test_scales_and_images_that_there_are_not(runs, name, given, sentence, monkeypatch):
    monkeypatch.setattr("workbench.lab.sources.extract", None)
    of = [runs["narrow"], "vae"] if name == "compare_maps" else runs["narrow"]
    with pytest.raises(ValueError, match=sentence):
        PLAIN[name](of, 40, **{**FEW, **given}, progress=quiet)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"scales": [1.0, float("nan")]}, "scales has nan; allowed are finite numbers"),
        ({"scales": [1.0, -2.0]}, "guidance scale must be finite and at least 0, got -2"),
        ({"scales": []}, "scales has nothing; allowed are finite numbers"),
        ({"count": 0}, "sampling.count is 0; allowed are 1 to"),
    ],
)
def test_samples_that_cannot_be_are_refused_before_any_is_generated(runs, given, sentence, monkeypatch):
    monkeypatch.setattr("workbench.lab.views.samples.generate", None)
    with pytest.raises(ValueError, match=sentence):
        wb.samples(runs["narrow"], None, **{"scales": [1.0], "count": 2, **given}, progress=quiet)


@pytest.mark.parametrize("value", ["0.5", 0.5, None, ["a"], [None], [True], [[0.5]], [0.5, float("nan")], [1.5], []])
def test_what_is_no_number_is_refused_in_a_sentence(value):
    with pytest.raises(ValueError, match=r"^times (is|has) .*; allowed are (several of these: )?0 to 1$"):
        real_numbers("times", value, 0.0, 1.0)


def test_numbers_are_kept_once_in_their_order():
    assert real_numbers("w", np.array([2, 0.5, 2])) == (2.0, 0.5)


def test_a_folder_that_is_not_there(runs, tmp_path):
    view = wb.maps(runs["narrow"], 2, **FEW, progress=quiet)
    chart = wb.probe_of_runs({"narrow": runs["narrow"]}, layers=[6], images=60, progress=quiet)
    for save, name in ((view.save_html, "x.html"), (view.save, "x.png"), (chart.save, "x.pdf")):
        with pytest.raises(ValueError, match=f"cannot write '{name}': there is no folder .*gone"):
            save(tmp_path / "gone" / name)
    with pytest.raises(ValueError, match="there are no runs; allowed are one or more"):
        wb.probe_of_runs({}, progress=quiet)


def test_more_images_than_there_are_are_refused_before_all_are_encoded(runs, monkeypatch):
    monkeypatch.setattr("workbench.data.latents.write_latents", None)
    data = DataConfig(name="digits", source="auto", limit=70)  # not encoded yet
    with pytest.raises(ValueError, match="1,000,004 images are to be read; allowed are 1 to 70"):
        wb.lens(runs["narrow"], [6], [0.5], fit=1_000_000, held=4, images=2, data=data, progress=quiet)


def test_a_step_without_checkpoint_and_scores_is_refused_before_the_reference_is_seen(runs, monkeypatch):
    monkeypatch.setattr("workbench.evaluation.suite._reference", None)
    with pytest.raises(ValueError, match="no checkpoint of step 3; it has: 2, 4"):
        wb.score(runs["narrow"], 3, runs["narrow"].config.sampling, small_ok=True)


@pytest.mark.parametrize("name", VIEWS)
def test_a_run_without_checkpoints(copied, name):
    shutil.rmtree(copied.folder / "checkpoints")
    with pytest.raises(ValueError, match="run copy has no checkpoint; it has: none"):
        VIEWS[name](copied)


@pytest.mark.parametrize("name", VIEWS)
def test_images_of_another_size_than_the_vae_s(runs, tmp_path, name):
    for number in range(60):
        folder = tmp_path / "pictures" / ("ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), number).save(folder / f"{number}.png")
    data = DataConfig(name="image-folder", path=str(tmp_path / "pictures"), size=16)
    with pytest.raises(ValueError, match=r"run narrow.* was trained on other latents: .*32.*16"):
        VIEWS[name](runs["narrow"], data=data)


@pytest.mark.parametrize("name", VIEWS)
def test_features_that_are_not_finite(copied, runs, name):
    rewrite(copied, lambda key, value: value.fill_(float("nan")) if "blocks.3." in key else value)
    with pytest.raises(ValueError, match=r"layer 6, t = 0.3, null: features are not all finite; did copy diverge befo"):
        VIEWS[name](copied)
    VIEWS[name](copied, layers=[1, 2])  # the layers before it can still be seen
    VIEWS[name](runs["narrow"])


@pytest.mark.parametrize("name", VIEWS)
def test_features_kept_of_other_weights_are_never_shown(copied, tmp_path, name):
    """The same run and step, trained a second time, after the first were kept: as if there had been no first."""
    before = arrays(VIEWS[name](copied))
    rewrite(copied, lambda key, value: value.roll(1, dims=0))
    after = arrays(VIEWS[name](copied))
    shutil.rmtree(tmp_path / ".features")
    fresh = arrays(VIEWS[name](copied))
    assert after.keys() == fresh.keys() == before.keys()
    assert all(np.array_equal(after[key], fresh[key], equal_nan=True) for key in fresh)
    assert not all(np.array_equal(after[key], before[key], equal_nan=True) for key in fresh)


def test_two_widths_have_no_joint_basis(runs):
    grids = [extract(runs[name], 4, [1], [0.3], root=runs["narrow"].folder.parent) for name in ("narrow", "wide")]
    first, second = (grid.read(1, 0.3, "null") for grid in grids)
    with pytest.raises(ValueError, match=r"features have the shapes .*48.*128.*; they must be the same tokens of one"):
        project({0.3: first, 0.7: second})
    wb.compare_maps([runs["narrow"], runs["wide"]], 3, **FEW, progress=quiet)  # each has its own there
    with pytest.raises(ValueError, match="coarse has 4 tokens per image, narrow 16 tokens; the numbers must be equal"):
        wb.compare_maps([runs["narrow"], runs["coarse"]], 3, **FEW, progress=quiet)


def test_measures_are_of_one_run(runs):
    options = {"images": 4, "layers": [1], "times": [0.3], "steps": None, "data": None}
    for several in ([runs["narrow"], runs["wide"]], [runs["narrow"], "vae"], []):
        with pytest.raises(ValueError, match="allowed is one run, whose features are measured"):
            choose(several, **options, alone=True)
    assert choose(runs["narrow"], **options, alone=True).runs == (runs["narrow"],)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token": 16}, "token is 16; allowed are distinct numbers from 0 to 15"),
        ({"token": [3, 3]}, r"token is \[3, 3\]; allowed are distinct"),
        ({"token": []}, r"token is \[\]; allowed"),
        ({"image": 80}, "image is 80; allowed are 0 to 79"),
        ({"image": -1}, "image is -1; allowed are 0 to 79"),
        ({"layers": [13]}, "layers has 13; allowed are 0 .* to 12"),
        ({"w": float("nan")}, "w is nan; allowed are finite numbers"),
        ({"t": 1.5}, "t is 1.5; allowed are 0 .data. to 1"),
        ({"several": "median"}, "several is 'median'; allowed are 'mean', 'maximum'"),
        ({"runs": ["narrow", "coarse"]}, "coarse has 4 tokens per image, narrow 16 tokens; .* cannot be compared"),
    ],
)
def test_a_token_that_is_not_there_is_refused_before_anything_runs(runs, change, said, monkeypatch):
    monkeypatch.setattr("workbench.lab.sources.extract", None)  # it would be called first
    given = {"runs": "narrow", "image": 0, "token": 0, **change}
    given["runs"] = runs[given["runs"]] if given["runs"] == "narrow" else list(map(runs.get, given["runs"]))
    with pytest.raises(ValueError, match=said):
        wb.similarity(**given, progress=quiet)


def test_grids_are_compared_before_anything_runs(runs, monkeypatch):
    monkeypatch.setattr("workbench.lab.sources.extract", None)
    for view in (wb.compare_maps, wb.embedding):
        with pytest.raises(ValueError, match="coarse has 4 tokens per image, narrow 16 tokens"):
            view([runs["narrow"], runs["coarse"]], 3, layers=[1], times=[0.3], progress=quiet)
