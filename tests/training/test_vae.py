"""Training of the VAE: cut off anywhere it ends with the same weights; its schedule is PyTorch's."""

import hashlib
import json
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workbench.__main__ import main
from workbench.config import DataConfig
from workbench.data.images import from_arrays, load_images
from workbench.data.vae import load_vae
from workbench.training import vae as module
from workbench.training.vae import UNFINISHED, VaeTraining, estimate_seconds, one_cycle, settings_for, train_vae

TINY = VaeTraining(steps=20, batch=8, latent_channels=2, widths=(8, 8), log_every=1, save_every=4)
# The same training in a process of its own, which tells each step.
CODE = f"""
import sys
from pathlib import Path
import torch
from workbench.__main__ import main
from workbench.config import DataConfig
from workbench.data.images import from_arrays, load_images
from workbench.training.vae import VaeTraining, train_vae
torch.set_num_threads(1)
train, test = (load_images(DataConfig(name="digits", limit=64), split) for split in ("train", "test"))
for record in train_vae(train, test, Path(sys.argv[1]), {TINY!r}):
    print(record.get("step"), flush=True)
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # another number of threads sums in another order
    yield
    torch.set_num_threads(before)


@cache
def digits(limit: int = 64):
    return [load_images(DataConfig(name="digits", limit=limit), split) for split in ("train", "test")]


def train(folder: Path, settings: VaeTraining = TINY, stop_after: int | None = None) -> list[dict]:
    """The records of a training, which is left after the step ``stop_after``."""
    records = []
    for record in train_vae(*digits(), folder, settings):
        records.append(record)
        if record.get("step") == stop_after:
            break
    return records


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A training that nothing disturbed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vae") / "whole"
    train(folder)
    return folder


def assert_same_vae(one: Path, other: Path) -> None:
    assert (one / "vae.safetensors").read_bytes() == (other / "vae.safetensors").read_bytes()
    records = [json.loads((folder / "vae.json").read_text()) for folder in (one, other)]
    assert all(records[0][key] == records[1][key] for key in records[0].keys() - {"seconds"})
    assert {path.name for path in other.iterdir()} == {"vae.safetensors", "vae.json"}


def test_a_finished_folder_is_a_vae(whole):
    vae = load_vae(str(whole), 1)
    record = json.loads((whole / "vae.json").read_text())
    assert vae.hash == record["sha256"] == hashlib.sha256((whole / "vae.safetensors").read_bytes()).hexdigest()
    assert (vae.channels, vae.factor) == (2, 2) and record["reconstruction"]["count"] == 64


@pytest.mark.slow
def test_killed_at_a_random_step_it_ends_the_same(whole, tmp_path):
    step = random.randint(5, 12)
    process = subprocess.Popen([sys.executable, "-c", CODE, tmp_path], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == str(step):
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL, step
    assert not (tmp_path / "vae.json").exists()
    first = train(tmp_path)[0]
    assert first["step"] > step // 4 * 4, (step, first)  # nothing before the last save is done again
    assert_same_vae(whole, tmp_path)


@pytest.mark.parametrize("steps", [(3,), (4, 5), (19,), (12, 20)])
def test_left_at_any_step_it_ends_the_same(whole, tmp_path, steps):
    for step in steps:
        train(tmp_path, stop_after=step)
    first = train(tmp_path)[0]
    if steps[-1] == TINY.steps:  # the end is saved too: it is only measured and written again
        assert "step" not in first
    else:
        assert first["step"] == steps[-1] // 4 * 4 + 1
    assert_same_vae(whole, tmp_path)


@pytest.mark.slow
def test_cut_off_while_saving_the_save_before_counts(whole, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    train(tmp_path, stop_after=5)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", full)
        with pytest.raises(OSError, match="no space left"):
            train(tmp_path)
    assert train(tmp_path)[0]["step"] == 5
    assert_same_vae(whole, tmp_path)


@pytest.mark.parametrize("key, value", [("steps", 30), ("seed", 1), ("widths", (8, 16)), ("learning_rate", 1e-3)])
def test_other_settings_are_refused(tmp_path, key, value):
    train(tmp_path, stop_after=4)
    before = (tmp_path / UNFINISHED).read_bytes()
    with pytest.raises(ValueError, match=rf"{UNFINISHED} is an unfinished training with {key} .*, not {key} .*delete"):
        train(tmp_path, replace(TINY, **{key: value}))
    assert (tmp_path / UNFINISHED).read_bytes() == before
    (tmp_path / UNFINISHED).unlink()
    assert train(tmp_path, replace(TINY, **{key: value}), stop_after=1)[0]["step"] == 1


def test_other_images_are_refused_and_how_often_is_free(tmp_path):
    train(tmp_path, stop_after=4)
    with pytest.raises(ValueError, match="content .*, not content"):
        next(train_vae(*digits(32), tmp_path, TINY))
    assert train(tmp_path, replace(TINY, log_every=2, save_every=1), stop_after=6)[0]["step"] == 6


@pytest.mark.parametrize("cut", [0, 5, 1000, -1])
def test_a_damaged_save_is_named(tmp_path, cut):
    train(tmp_path, stop_after=4)
    file = tmp_path / UNFINISHED
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=f"{UNFINISHED} is damaged.*delete it"):
        train(tmp_path)


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"loss is (nan|inf) at step \d+; lower learning_rate"):
        train(tmp_path, replace(TINY, learning_rate=1e30, precision="no"))
    assert not (tmp_path / "vae.json").exists()


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    train(tmp_path, stop_after=4)
    file = tmp_path / UNFINISHED
    with safe_open(file, "pt") as content:
        tensors, header = {name: content.get_tensor(name) for name in content.keys()}, content.metadata()  # noqa: SIM118
    tensors["optimizer/encoder.conv_in.weight/exp_avg"][:] = torch.nan  # the loss sees it one step later
    save_file(tensors, file, header)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"^encoder\.conv_in\.weight of the VAE is not finite after step 5; lower"):
        train(tmp_path, replace(TINY, save_every=1))
    assert file.read_bytes() == before and not (tmp_path / "vae.json").exists()


@pytest.mark.parametrize("steps", [7, 100, 333])
def test_the_schedule_is_pytorchs(steps):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        (group,) = optimizer.param_groups
        assert one_cycle(step, steps, 2e-3) == pytest.approx((group["lr"], group["betas"][0]), rel=1e-9)
        optimizer.step()
        if step < steps - 1:
            schedule.step()


def images_of(size: int, count: int = 200):
    pixels = np.zeros((count, 3, size, size), np.uint8)
    return from_arrays("made", "train", pixels, np.zeros(count, np.int64), ["one"], "here")


@pytest.mark.parametrize(
    ("size", "chosen", "widths", "batch"),
    [
        (32, {}, (16, 48, 96), 64),
        (64, {}, (16, 48, 96), 32),
        (128, {}, (16, 48, 96, 128), 16),
        (256, {}, (16, 48, 96, 128), 8),
        (64, {"factor": 8, "batch": 5}, (16, 48, 96, 128), 5),
        (48, {"factor": 16}, (16, 48, 96, 128, 128), 42),
        (32, {"factor": 2}, (16, 48), 64),
    ],
)
def test_settings_fit_the_size(size, chosen, widths, batch):
    settings = settings_for(images_of(size), steps=7, **chosen)
    assert (settings.widths, settings.batch, settings.steps) == (widths, batch, 7)


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="images of 28 pixels cannot be reduced by a factor of 8: change data.size"):
        settings_for(images_of(28), factor=8)
    with pytest.raises(ValueError, match="factor is one of 2, 4, 8, 16; got 3"):
        settings_for(images_of(32), factor=3)
    with pytest.raises(ValueError, match="a batch of 11 is more than the 10 training images"):
        settings_for(images_of(32, 10), batch=11)
    assert settings_for(images_of(32, 10)).batch == 10


def test_colour_images_of_64_pixels(tmp_path):
    """The shape of the latents, and a file that loads: what a folder of photographs needs."""
    train_set, test_set = (
        load_images(DataConfig(name="scenes", source="embedded", size=64, limit=12), split)
        for split in ("train", "test")
    )
    settings = settings_for(train_set, steps=2, batch=4)
    *_, record = train_vae(train_set, test_set, tmp_path, settings)
    vae = load_vae(str(tmp_path), 3)
    assert vae.encode(test_set.batch([0])).shape == (1, 8, 16, 16) and record["training"]["data"] == "scenes"
    assert (tmp_path / "vae.safetensors").stat().st_size < 4e6


def test_a_training_starts_from_another(whole, tmp_path):
    """A learning rate of nearly nothing leaves the weights as they were; another start is another training."""
    settings = replace(TINY, steps=2, learning_rate=1e-9, start=str(whole))
    *_, record = train_vae(*digits(), tmp_path, settings)
    before, after = (load_vae(str(folder), 1) for folder in (whole, tmp_path))
    assert record["start"] == before.hash and after.hash != "" and not (tmp_path / UNFINISHED).exists()
    for one, two in zip(before.model.parameters(), after.model.parameters(), strict=True):
        assert (one - two).abs().max() <= 1e-6
    train(tmp_path / "unfinished", replace(TINY, start=str(whole)), stop_after=4)
    with pytest.raises(ValueError, match="unfinished training with start .*, not start None"):
        train(tmp_path / "unfinished", TINY)


def test_a_start_that_does_not_fit_is_named(whole, tmp_path):
    for start, widths in ((str(whole), (8, 8, 8)), ("identity", (8, 8)), ("kl-f4", (8, 8))):
        with pytest.raises(ValueError, match=f"the weights of .* do not fit .* widths {re.escape(str(widths))}"):
            next(train_vae(*digits(), tmp_path, replace(TINY, start=start, widths=widths)))
    with pytest.raises(ValueError, match="is for images of 1 channels; these have 3; .* kl-f4-scenes-32"):
        next(train_vae(images_of(32), images_of(32), tmp_path, replace(TINY, start=str(whole))))


def test_the_time_is_that_of_the_steps_left(tmp_path):
    """A training of which all steps are done takes no more time; an unknown one takes some, and changes nothing."""
    before = torch.random.get_rng_state()
    assert estimate_seconds(digits()[0], TINY, tmp_path) > 0
    train(tmp_path, stop_after=TINY.steps)
    assert estimate_seconds(digits()[0], TINY, tmp_path) == 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_command_trains_on_any_set_and_says_how(tmp_path, capsys):
    folder, options = tmp_path / "my-vae", ["data.name=digits", "data.limit=140", "--steps", "2", "--batch", "4"]
    main(["vae", "train", str(folder), *options])
    said, record = " ".join(capsys.readouterr().out.split()), json.loads((folder / "vae.json").read_text())
    assert record["command"] == " ".join(["workbench vae train FOLDER", *options])
    assert "32x32x1 to 8x8x4, widths (16, 48, 96), batch 4, 2 steps: about 1 min on this machine" in said
    reconstruction = record["reconstruction"]
    assert f"psnr {reconstruction['psnr']:.4g}" in said and reconstruction["fd_count"] == 70
    assert reconstruction["fd_effnet-lite0"] > reconstruction["fd_real"] > 0
    assert load_vae(str(folder), 1).hash == record["sha256"]
