"""What every pair of a backbone and an objective must keep, over all that are registered."""

import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workbench import config as configuration
from workbench import plugins
from workbench.config import Config, from_dict, to_dict
from workbench.data.latents import open_latents
from workbench.data.targets import open_targets
from workbench.objectives.base import Inputs
from workbench.runs.models import load_teacher
from workbench.runs.store import Run, find_runs, prepare_run
from workbench.training.batches import draw_batch
from workbench.training.loop import fit
from workbench.training.student import build_student

pytestmark = pytest.mark.usefixtures("one_thread")

DEPTH = 4  # of twelve blocks: some with a tap, some without, those of the teacher
LAYERS = {"layer": 2, "teacher_layer": 3, "pairs": [[1, 3]]}
MUON = "muon"  # a run with another optimizer than those of the pairs
PAIRS = [(backbone, objective) for backbone in plugins.names("backbone") for objective in plugins.names("objective")]
TREE = {
    "data": {"name": "digits", "limit": 16},
    "vae": {"name": "identity"},
    "training": {"steps": 6, "batch": 8, "log_every": 1, "checkpoint_every": 3, "learning_rate": 1e-3},
}


def options_of(objective: str, root: Path, backbone: str) -> dict:
    """Small heads, an early stop, layers of four, and a teacher where the method wants one."""
    known = configuration.plugin_options("objective", objective)
    options = {"name": objective, **{key: value for key, value in LAYERS.items() if key in known}}
    options |= {"head_width": 16} if "head_width" in known else {}
    options |= {"stop_step": 4} if "stop_step" in known else {}
    if "teacher" in known:
        options["teacher"] = teacher_of(backbone, root)
    return options


@functools.cache
def teacher_of(backbone: str, root: Path) -> str:
    return str(train(pair_config(backbone, "vae_align", root), root).folder)


def pair_config(backbone: str, objective: str, root: Path) -> Config:
    sections = {"backbone": {"name": backbone, "size": "pico", "patch": 16}}
    return from_dict(
        {**TREE, **sections, "objective": options_of(objective, root, backbone), "name": f"{backbone}-{objective}"}
    )


def train(config: Config, root: Path) -> Run:
    for _ in fit(config, root):
        pass
    return prepare_run(config, root)


def weights(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = run.checkpoint(run.config.training.steps)
    parts = {part: checkpoint.load(part) for part in ("model", "ema", "optimizer")}
    return {f"{part}:{name}": value for part, named in parts.items() for name, value in named.items()}


@pytest.fixture(scope="module", autouse=True)
def shallow():
    with pytest.MonkeyPatch.context() as patched:
        for name in plugins.names("backbone"):
            kind = configuration.plugin_class("backbone", name)
            patched.setattr(kind, "sizes", {**kind.sizes, "pico": kind.sizes["pico"]._replace(depth=DEPTH)})
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


# The backbones share their blocks' order and taps: plain pytest takes one of them.
@pytest.fixture(
    params=[pytest.param(pair, marks=() if pair[0] == "sit" else pytest.mark.slow) for pair in PAIRS], ids="-".join
)
def config(request, root):
    return pair_config(*request.param, root)


@pytest.fixture
def built(config, root):
    """A student whose zero-initialised parts are random too, its batch, and an average that is another model."""
    latents = open_latents(config, "train", root / ".latents")
    targets = open_targets(config, "train", latents, root / ".targets", "cpu")
    student = build_student(config, latents, load_teacher(config, latents, root), targets)
    ema = build_student(replace(config, objective=configuration.Plugin("denoise")), latents, None, {}).backbone
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (*student.backbone.parameters(), *ema.parameters()):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return student, draw_batch(config, latents, targets, 0, range(8)), ema


def total(student, batch, ema) -> torch.Tensor:
    weight = student.objective.weight_at(0)
    losses = student(batch, weight > 0, ema)
    return losses.denoise.mean() + (0 if losses.alignment is None else weight * losses.alignment.mean())


def test_one_step_lowers_the_loss(built):
    student, batch, ema = built
    before = total(student, batch, ema)
    before.backward()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert total(student, batch, ema) < before


def test_alignment_reaches_the_layers_below_its_taps_and_nothing_else(built):
    student, batch, ema = built
    if not student.objective.taps:
        pytest.skip("no alignment")
    ema.requires_grad_(True)
    if student.objective.context.teacher is not None:
        student.objective.context.teacher.requires_grad_(True)
    tapped = student.backbone.forward_tapped(batch.x_t, batch.t, batch.y, student.objective.taps)
    student.objective.loss(Inputs(**batch.__dict__, features=tapped.features, ema=ema)).loss.mean().backward()
    deepest = max(student.objective.taps)
    touched = [n for n, p in student.backbone.named_parameters() if p.grad is not None and p.grad.any()]
    blocks = {int(name.split(".")[1]) + 1 for name in touched if name.startswith("blocks.")}
    assert blocks and min(blocks) == 1 and max(blocks) <= deepest
    assert not any(name.startswith("final_layer") for name in touched)
    assert all(p.grad is not None for p in student.objective.parameters())
    teacher = student.objective.context.teacher
    assert all(p.grad is None for model in (ema, teacher) if model is not None for p in model.parameters())


def test_nothing_of_the_objective_runs_after_the_stop(config, root, monkeypatch):
    kind = configuration.plugin_class("objective", config.objective.name)
    if "stop_step" not in config.objective.options:
        pytest.skip("no alignment")
    calls, loss = [], kind.loss
    monkeypatch.setattr(kind, "loss", lambda self, inputs: calls.append(1) or loss(self, inputs))
    aligned = [record["alignment"] for record in fit(replace(config, name="counted"), root / "counted")]
    assert len(calls) == 4 and [value is None for value in aligned] == [False] * 4 + [True] * 2


def test_a_stopped_run_resumes_to_the_same_weights(config, root):
    whole = weights(train(config, root))
    for record in fit(config, root / "cut"):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    run = prepare_run(config, root / "cut")
    assert run.status["state"] == "stopped" and run.status["step"] < 6
    resumed = weights(train(config, root / "cut"))
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


WORKER = """
import json, os, sys
from pathlib import Path
from workbench import plugins  # first, so that PyTorch is imported faster
import torch
from workbench.config import from_dict, plugin_class
from torch.distributed.tensor import DTensor
from workbench.runs import checkpoints
from workbench.runs.store import find_runs
from workbench.training import loop, state
for name in plugins.names("backbone"):
    kind = plugin_class("backbone", name)
    kind.sizes = {**kind.sizes, "pico": kind.sizes["pico"]._replace(depth=DEPTH)}
update, build = state.TrainState.update, loop.build_student
# Behind parts that are zero, gradients are so small that AdamW makes steps of their rounding errors.
def filled(*given):
    student, generator = build(*given), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return student
loop.build_student = filled
seen = []
def checked(self, rate):
    seen[:] = [self]
    assert self.sharded == (self.config.sharding == "fsdp")
    assert all(isinstance(p, DTensor) == self.sharded for p in self.student.parameters())
    return update(self, rate)
state.TrainState.update = checked
for folder in sys.argv[1:]:
    root = Path(folder)
    for tree in json.loads((root / "pairs.json").read_text()):
        for _ in loop.fit(from_dict(tree), root):
            pass
    # What is not finite in one process alone is found by all.
    name, parameter = list(seen[0].student.named_parameters())[-1]
    assert seen[0].not_finite() is None
    if seen[0].accelerator.is_last_process:
        with torch.no_grad():
            (parameter.to_local() if seen[0].sharded else parameter).view(-1)[-1] = torch.nan
    assert seen[0].not_finite() == f"model {name}", (seen[0].not_finite(), name)
    main = seen[0].accelerator.is_main_process
    assert any(seen[0].parts().values()) == main
    # Restored from files that the main process reads and checks, and the other maps.
    (run,) = (run for run in find_runs(root) if run.config.name == tree["name"])
    saved = (run.folder / "checkpoints", tree["training"]["steps"])
    seen[0].restore((checkpoints.latest_resumable(saved[0]) if main else checkpoints.resumable_at(*saved))[1])
    assert seen[0].not_finite() is None
# The last training is still referenced: as Python is torn down, gloo's threads can abort the process.
sys.stdout.flush()
os._exit(0)
"""


def find_run(name: str, root: Path) -> Run:
    (run,) = (run for run in find_runs(root) if run.config.name == name)
    return run


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> dict[str, Path]:
    """Where all pairs were trained by one process, and by two with each kind of sharding, one after the other."""
    here = tmp_path_factory.mktemp("processes")
    (here / "worker.py").write_text(WORKER.replace("DEPTH", str(DEPTH)))
    folders = {kind: here / kind for kind in ("one process", "ddp", "fsdp")}
    for kind, folder in folders.items():
        folder.mkdir()
        trees = [to_dict(pair_config(*pair, root)) for pair in PAIRS]
        trees.append({**to_dict(pair_config("sit", "vae_align", root)), "name": MUON})
        for tree in trees:
            # Few steps, as those of shards are slow: two with alignment and two without, and saved at the end alone.
            tree["training"] |= {"sharding": "fsdp" if kind == "fsdp" else "ddp", "steps": 4, "checkpoint_every": 4}
            if "stop_step" in tree["objective"]:
                tree["objective"]["stop_step"] = 2
            if "gather" in tree["objective"]:  # dispersive compares the samples of one process unless it gathers them
                tree["objective"]["gather"] = True
            if tree["name"] == MUON:
                tree["training"] |= {"optimizer": "muon", "steps": 2}
        (folder / "pairs.json").write_text(json.dumps(trees))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for launcher, kinds in (([], ["one process"]), (torchrun, ["ddp", "fsdp"])):
        done = subprocess.run(
            [sys.executable, *launcher, str(here / "worker.py"), *(str(folders[kind]) for kind in kinds)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_agree_with_one(trained, sharding):
    for name in [*map("-".join, PAIRS), MUON]:
        # Muon orthogonalizes in bfloat16: directions without a gradient take steps of their rounding errors.
        atol = 4e-3 if name == MUON else 2e-5
        one, two = (find_run(name, trained[kind]) for kind in ("one process", sharding))
        a, b = weights(one), weights(two)
        assert a.keys() == b.keys()
        for key in ("loss", "alignment", "gradient_norm"):
            values = [[r[key] for r in run.metrics if r[key] is not None] for run in (one, two)]
            assert values[0] == pytest.approx(values[1], rel=1e-3), (name, key)
        for part in a:
            torch.testing.assert_close(
                a[part], b[part], rtol=2e-3, atol=atol, msg=lambda m, what=f"{name} {part}": f"{what}: {m}"
            )
