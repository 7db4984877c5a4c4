"""What a view is given that it cannot show: one sentence that says what is wrong, and the rest goes on working."""

import shutil

import pytest
from safetensors.torch import load

import workbench as wb
from workbench.config import load_config
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.store import Run, prepare_run
from workbench.training.loop import fit

TINY = (
    *("data.name=digits", "data.source=auto", "data.limit=80", "codec.name=identity", "backbone.patch=8"),
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


VIEWS = {
    "maps": lambda run, **more: wb.maps(run, 3, **{**FEW, **more}, progress=quiet),
    "compare_maps": lambda run, **more: wb.compare_maps([run, "vae"], 3, **{**FEW, **more}, progress=quiet),
    "embedding": lambda run, **more: wb.embedding(run, 20, **{**FEW, **more}, mapped=2, progress=quiet),
    "separability": lambda run, **more: wb.separability(run, 40, **{**FEW, **more}, progress=quiet),
    "leakage": lambda run, **more: wb.leakage(run, 40, **{**FEW, **more}, progress=quiet),
    "explore": lambda run, **more: wb.explore(run, 40, **{**FEW, **more}, mapped=2, progress=quiet),
}


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
    ],
)
def test_layers_and_times_that_there_are_not(runs, name, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        VIEWS[name](runs["narrow"], **given)
