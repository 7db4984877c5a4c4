"""What several processes do together: shards in half precision, the start, and a resumed run."""

import gc
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.config import Config, load_config
from workbench.data import latents
from workbench.data.latents import open_latents
from workbench.runs.store import Run, prepare_run
from workbench.training import loop
from workbench.training.loop import fit

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "data.name=digits",
    "data.source=auto",
    "data.limit=32",
    "vae.name=identity",
    "backbone.patch=8",
    "backbone.size=pico",
    "training.steps=2",
    "training.batch=8",
    "training.log_every=1",
    "training.checkpoint_every=1",
    "training.milestone_every=2",
    "training.optimizer=adamw",
    "training.precision=no",
)
HALF = ("training.precision=bf16", "training.sharding=fsdp")


@pytest.fixture
def filled(monkeypatch):
    """Students without zero parts, behind which AdamW makes steps of rounding errors."""
    build = loop.build_student

    def build_filled(*given):
        student, generator = build(*given), torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        return student

    monkeypatch.setattr(loop, "build_student", build_filled)


def train(config: Config, root: Path) -> Run:
    list(fit(config, root))
    return prepare_run(config, root)


def weights(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = run.checkpoint(run.config.training.steps)
    return {f"{part}:{k}": v for part in ("model", "ema", "optimizer") for k, v in checkpoint.load(part).items()}


@pytest.mark.slow
def test_shards_in_half_precision_train_as_one_process_does_and_resume_exactly(tmp_path, in_ranks, filled):
    """The blocks are gathered in bfloat16 and their gradients summed in float32; weights stay in float32."""
    backbones = (("backbone.name=lightningdit",), ("backbone.name=sit", "backbone.qk_norm=true"))
    configs = [load_config("demo/plain", (*SMALL, *HALF, *options)) for options in backbones]

    def share(rank: int) -> list[set[torch.dtype]]:
        state, seen = loop.TrainState, []

        class Watched(state):
            def __init__(self, *given):
                super().__init__(*given)
                blocks, embedder = self.student.backbone.blocks, self.student.backbone.t_embedder
                assert all(p.dtype == torch.float32 for p in self.student.parameters())
                for module in (embedder, blocks[0].attn, blocks[-1].mlp):  # while they are gathered
                    found: set[torch.dtype] = set()
                    seen.append(found)
                    module.register_forward_hook(
                        lambda of, *_, found=found: found.update(p.dtype for p in of.parameters())
                    )

        loop.TrainState = Watched
        for config in configs:
            train(config, tmp_path / "two")
        loop.TrainState = state
        next(iter(fit(configs[1], tmp_path / "cut")))  # saved at step 1
        train(configs[1], tmp_path / "cut")
        return seen

    half, whole = {torch.bfloat16}, {torch.float32}
    assert in_ranks(share) == [[whole, half, half, whole, half, half]] * 2
    for config in configs:
        one, two = (train(config, tmp_path / name) for name in ("one", "two"))
        a, b = weights(one), weights(two)
        assert a.keys() == b.keys() and {tensor.dtype for tensor in b.values()} == whole
        for key in ("loss", "gradient_norm"):
            assert [r[key] for r in two.metrics] == pytest.approx([r[key] for r in one.metrics], rel=5e-3)
        names = [name for name in a if name.startswith("optimizer:") and name.endswith("exp_avg")]
        moments, others = (torch.cat([of[name].flatten() for name in names]) for of in (a, b))
        assert (moments - others).norm() < 0.03 * moments.norm()
    cut = weights(prepare_run(configs[1], tmp_path / "cut"))
    assert cut.keys() == b.keys() and [name for name in cut if not torch.equal(cut[name], b[name])] == []


@pytest.mark.parametrize("split", ["", "train/"])
def test_ready_latents_are_opened_without_listing_the_images(tmp_path, in_ranks, monkeypatch, split):
    """Of a large folder; two processes, one of which looks at the folders alone, the other at nothing."""
    monkeypatch.setattr(latents, "_MANY", 2)
    images = tmp_path / "images"
    for label in ("cat", "dog"):
        (images / split / label).mkdir(parents=True)
        for number in range(8):
            picture = np.full((32, 32, 3), 10 * number, np.uint8)
            Image.fromarray(picture).save(images / split / label / f"{number}.png")
    data = (f"data.path={images}", "data.name=image-folder", "data.size=32", "training.steps=1")
    config = load_config("demo/plain", [o for o in SMALL if not o.startswith(("data.", "training.steps"))] + list(data))
    list(fit(config, tmp_path / "runs"))

    def start(rank: int) -> list[str]:
        seen = []

        def note(event, arguments):
            if event in ("os.scandir", "os.listdir", "open") and str(arguments[0]).startswith(str(images)):
                seen.append(f"{event} {Path(str(arguments[0])).relative_to(images)}")

        sys.addaudithook(note)
        list(fit(replace(config, training=replace(config.training, seed=1)), tmp_path / "runs"))
        return seen

    main, other = in_ranks(start)
    assert set(main) == {"os.scandir ."} | ({"os.scandir train"} if split else set()) and other == []


def test_stored_targets_of_many_images_are_not_encoded_while_others_wait(tmp_path, in_ranks, monkeypatch):
    config = load_config("demo/plain", [*SMALL, "objective.name=repa", "objective.encoder=effnet-lite0"])
    open_latents(config, "train", tmp_path / ".latents")
    monkeypatch.setattr(loop, "_ENCODED_AT_ONCE", 8)

    def start(rank: int) -> str:
        with pytest.raises(ValueError) as refused:
            next(iter(fit(config, tmp_path)))
        return str(refused.value)

    said = "the targets of 32 images are not encoded yet: run `workbench encode` with the same configuration"
    assert all(text.startswith(said) for text in in_ranks(start))


def test_buckets_of_gradients_are_there_once_when_the_objective_stops(tmp_path, in_ranks):
    options = ("objective.name=sra", "objective.stop_step=1")
    config = load_config("demo/plain", (*SMALL, *options))

    def share(rank: int) -> list[tuple[bool, int, bool, bool]]:
        state, made, seen = loop.TrainState, [], []

        class Watched(state):
            def align(self, aligned):
                before = self.aligned
                super().align(aligned)
                if aligned != before:
                    made.append(weakref.ref(self.model))
                    gc.collect()
                    alive = sum(model() is not None for model in made)
                    seen.append((aligned, alive, self.model.gradient_as_bucket_view, self.model.broadcast_buffers))

        loop.TrainState = Watched
        list(fit(config, tmp_path / "runs"))
        return seen

    assert in_ranks(share) == [[(True, 1, True, False), (False, 1, True, False)]] * 2
