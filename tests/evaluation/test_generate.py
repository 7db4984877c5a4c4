"""A run's samples: the same for any count, processes and kill; and scores of them, on a tiny trained run."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from workbench.__main__ import main
from workbench.config import SamplingConfig, fingerprint, load_config, to_yaml
from workbench.evaluation import generate as module
from workbench.evaluation.archives import StoredImages, read_samples
from workbench.evaluation.generate import _parts, described, generate, labels_of
from workbench.evaluation.statistics import PROTOCOL
from workbench.evaluation.suite import score
from workbench.features.extract import extract
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.store import Run, prepare_run
from workbench.training.loop import fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    # No VAE and few tokens: little is computed.
    data = ("data.name=digits", "data.limit=40", "vae.name=identity")
    options = (*data, "backbone.patch=16", "training.steps=2", "training.batch=4")
    config = load_config("demo/plain", [*options, "sampling.steps=2", "sampling.count=250"])
    list(fit(config, root))
    return prepare_run(config, root)


@pytest.fixture
def run(trained, tmp_path):
    """The run without samples."""
    copy = Run(tmp_path / trained.name)
    shutil.copytree(trained.folder, copy.folder, ignore=shutil.ignore_patterns("samples"))
    return copy


@pytest.fixture(scope="module")
def whole(trained):
    """The samples of the run, made in one go by one process."""
    return generate(trained, 2, trained.config.sampling)


def parts_of(run):
    """When each finished part was written."""
    return {path.name: path.stat().st_mtime_ns for path in run.folder.glob("samples/*/part-*.npz")}


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def files_of(run):
    return sorted(path.name for path in (run.folder / "samples").rglob("*"))


def test_sample_does_not_depend_on_count(run, whole):
    few = generate(run, 2, replace(run.config.sampling, count=130))
    assert torch.equal(few.images[:100], whole.images[:100])  # a batch of the same images
    # The convolutions of another batch size may round differently in the last bit before quantisation.
    assert (few.images.int() - whole.images[:130].int()).abs().max() <= 1
    assert torch.equal(few.labels, whole.labels[:130])


def test_parts_are_of_whole_batches():
    assert [len(part) for part in _parts(30)] == [30]
    assert [len(part) for part in _parts(250)] == [100, 100, 50]
    assert [len(part) for part in _parts(2_000)] == [200] * 10
    assert [len(part) for part in _parts(50_000)] == [1000] * 50
    for count in (1, 99, 1_650, 17_023):
        assert [i for part in _parts(count) for i in part] == list(range(count))
        assert all(part.start % 100 == 0 for part in _parts(count))


def test_samples_are_kept_in_one_file(run, monkeypatch):
    settings, calls = replace(run.config.sampling, count=120), []
    first = generate(run, 2, settings, lambda *done: calls.append(done))
    assert calls == [(0, 120), (100, 120), (120, 120)]
    (name,) = files_of(run)  # no part, no lock
    monkeypatch.setattr(module, "load_backbone", lambda *_: pytest.fail("made again"))
    again = generate(run, 2, settings)
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    # Strides choose the detector's kernels, and so its rounding.
    assert first.images.stride() == again.images.stride() == (1024, 1024, 32, 1)
    assert first.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    with np.load(run.folder / "samples" / name) as arrays:
        assert arrays.files == ["arr_0", "labels"]
        assert arrays["arr_0"].shape == (120, 32, 32, 1) and arrays["arr_0"].dtype == np.uint8


@pytest.mark.slow
def test_processes_make_the_same_images(run, whole):
    calls = []
    shared = generate(run, 2, run.config.sampling, lambda *done: calls.append(done), processes=2)
    assert torch.equal(shared.images, whole.images) and torch.equal(shared.labels, whole.labels)
    counts = [done for done, _ in calls]
    assert counts == sorted(counts) and calls[-1] == (250, 250) and {total for _, total in calls} == {250}
    assert len(files_of(run)) == 1
    with pytest.raises(ValueError, match="processes must be at least 1; got 0"):
        generate(run, 2, run.config.sampling, processes=0)


@pytest.mark.slow
def test_killed_generation_goes_on(run, whole):
    code = (
        "from pathlib import Path; from workbench.runs.store import Run\n"
        "from workbench.evaluation.generate import generate\n"
        f"run = Run(Path({str(run.folder)!r})); generate(run, 2, run.config.sampling, processes=2)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: parts_of(run))
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    time.sleep(0.5)
    finished = parts_of(run)
    time.sleep(0.5)
    assert parts_of(run) == finished  # its processes ended with it
    if len(finished) < 3:  # else the kill came between the last part and the joining
        assert not list(run.folder.glob("samples/*.npz"))
    calls = []
    resumed = generate(run, 2, run.config.sampling, lambda *done: calls.append(done))
    assert calls[0] == (sum(50 if name.endswith("200.npz") else 100 for name in finished), 250)
    assert torch.equal(resumed.images, whole.images)
    assert len(files_of(run)) == 1  # no part, no lock, no half-written file


def stopped_after(run, parts):
    """The run with the first `parts` finished, its generation stopped by an error."""

    def stop(done, total):
        if done > 100 * parts:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(run, 2, run.config.sampling, stop)
    assert len(parts_of(run)) == parts
    return sorted(run.folder.glob("samples/*/part-*.npz"))


def test_damaged_parts_are_made_again(run, whole):
    first, second = stopped_after(run, 2)
    content = first.read_bytes()
    first.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    calls = []
    resumed = generate(run, 2, run.config.sampling, lambda *done: calls.append(done))
    assert calls[0] == (100, 250)  # the second part is kept
    assert torch.equal(resumed.images, whole.images)


def test_parts_left_by_a_kill_while_they_were_removed_are_removed(run, whole):
    stopped_after(run, 1)
    folder = next((run.folder / "samples").glob("step-*"))
    generate(run, 2, run.config.sampling)
    folder.mkdir()
    (folder / "part-00000000.npz").touch()
    assert torch.equal(generate(run, 2, run.config.sampling).images, whole.images)
    assert len(files_of(run)) == 1


@pytest.mark.slow
def test_errors_of_a_process_reach_the_caller(run, monkeypatch):
    weights = next(run.folder.glob("checkpoints/*/ema.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="ema.safetensors"):
        generate(run, 2, run.config.sampling, processes=2)
    monkeypatch.setattr(module, "_WORKER", "import os; input(); os.kill(os.getpid(), 9)")
    with pytest.raises(
        ValueError, match="generating process . of 2 was killed by signal 9, .* run it again to continue"
    ):
        generate(run, 2, run.config.sampling, processes=2)


def test_random_labels_depend_on_seed_and_number_alone():
    random = SamplingConfig(count=20_000, labels="random", seed=3)
    labels = labels_of(random, 10)
    assert torch.equal(labels_of(replace(random, count=77), 10), labels[:77])
    assert not torch.equal(labels_of(replace(random, seed=4), 10), labels)
    counts = torch.bincount(labels, minlength=10).double()
    # Chi-squared with 9 degrees of freedom: below 27.9 but once in a thousand draws; equal counts would give 0.
    assert 1 < ((counts - 2000) ** 2 / 2000).sum() < 27.9 and labels.max() == 9
    assert torch.bincount(labels_of(replace(random, labels="balanced"), 10)).tolist() == [2000] * 10


def test_random_labels_are_those_of_the_images(run):
    settings = replace(run.config.sampling, count=60, labels="random")
    samples, balanced = generate(run, 2, settings), generate(run, 2, replace(settings, labels="balanced"))
    assert torch.equal(samples.labels, labels_of(settings, 10))
    same = samples.labels == balanced.labels
    differences = (samples.images.int() - balanced.images.int()).abs().amax(dim=(1, 2, 3))
    assert differences[same].max() <= 1  # the noise is that of the number, whatever the label


def test_labels_do_not_count_in_the_fingerprint():
    plain, random = load_config("demo/plain"), load_config("demo/plain", ["sampling.labels=random"])
    assert plain.sampling.labels == "balanced" and fingerprint(plain) == fingerprint(random)
    with pytest.raises(ValueError, match="did you mean 'balanced'"):
        load_config("demo/plain", ["sampling.labels=balance"])


def test_an_untrained_null_class_guides_nothing(run):
    settings = replace(run.config.sampling, count=3)
    assert generate(run, 2, replace(settings, guidance_scale=2.0)).images.shape == (3, 1, 32, 32)
    always = replace(run.config, diffusion=replace(run.config.diffusion, label_dropout=0.0))
    (run.folder / "config.yaml").write_text(to_yaml(always))
    run = Run(run.folder)
    with pytest.raises(ValueError, match="label_dropout 0, so its null class is untrained; it cannot be guided: set"):
        generate(run, 2, replace(settings, guidance_scale=2.0))
    assert generate(run, 2, settings).images.shape == (3, 1, 32, 32)


def test_a_damaged_file_is_told(run):
    settings = replace(run.config.sampling, count=3)
    generate(run, 2, settings)
    (file,) = (run.folder / "samples").glob("*.npz")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        generate(run, 2, settings)


def test_how_images_came_about(run):
    settings = replace(run.config.sampling, guidance_scale=2.0, guidance_high=0.6, weights="raw", labels="random")
    found = described(run, 2, settings)
    assert found.pop("quantisation").startswith("trunc(")
    assert found == {
        "step": 2,
        "n_generated": 250,
        "sampler": settings.sampler,
        "sampler_steps": 2,
        "last_step": settings.last_step,
        "shift": 1.0,
        "guidance_scale": 2.0,
        "guidance_low": 0.0,
        "guidance_high": 0.6,
        "guidance_channels": None,
        "weights": "raw",
        "ema": run.config.training.ema,
        "sample_seed": 0,
        "train_seed": 0,
        "label_scheme": "random",
        "decoder": "identity identity",
        "nfe": 3,  # the first step starts at t = 1, which is not guided, the second at 0.04: one evaluation and two
        "weak": None,
        "weak_step": None,
        "weak_hash": None,
    }
    assert found.keys() >= {*PROTOCOL[2:14]} - {"quantisation"}
    assert len(asdict(settings)) == 13  # each of them is among the keys above, under its name or another
    assert described(run, 2, replace(settings, precision="bf16"))["precision"] == "bf16"  # older scores have none


def test_samples_in_bfloat16_are_others_kept_apart(run, monkeypatch):
    weights = run.checkpoint(2).load("ema")
    for weight in weights.values():  # so early the model predicts zeros
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    save_checkpoint(run.folder / "checkpoints", 2, {"ema": weights}, {})
    settings = replace(run.config.sampling, count=20)
    single = generate(run, 2, settings)
    half = generate(run, 2, replace(settings, precision="bf16"))
    assert len(list(run.folder.glob("samples/*.npz"))) == 2
    difference = (single.images.float() - half.images.float()).abs()
    assert 0 < difference.mean() < 8  # of 255 grey levels
    # Decided where sampling starts; the same file then.
    monkeypatch.setattr(module, "chosen_precision", lambda asked: "bf16" if asked == "auto" else asked)
    monkeypatch.setattr(module, "load_backbone", lambda *_: pytest.fail("made again"))
    assert torch.equal(generate(run, 2, replace(settings, precision="auto")).images, half.images)
    assert described(run, 2, replace(settings, precision="auto"))["precision"] == "bf16"


def test_ranks_of_a_launcher_share_the_images_and_the_main_one_scores(run, whole, in_ranks, monkeypatch):
    """As torchrun starts them, on any number of machines: `torchrun ... -m workbench evaluate RUN`."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(run.folder.parent))
    draw = module.sample_latents

    def share(rank):
        numbers = []
        module.sample_latents = lambda *given: numbers.extend(given[4].tolist()) or draw(*given)
        shown, wrong = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(wrong):
            main(["evaluate", str(run.folder), "--detector", "randomconv", "--small-ok"])
        return numbers, shown.getvalue(), wrong.getvalue()

    (first, shown, wrong), (second, *silent) = in_ranks(share)
    assert sorted(first + second) == list(range(250)) and min(len(first), len(second)) == 100
    assert "250 images against 40 of" in shown and silent == ["", ""] and wrong == ""
    again = in_ranks(share)
    assert [numbers for numbers, *_ in again] == [[], []]  # the scores are known
    assert "250 images against 40 of" in again[0][1]
    assert len(run.results) == len({record["metric"] for record in run.results}) > 3
    (file,) = (run.folder / "samples").glob("*")
    assert torch.equal(read_samples(file).images, whole.images)


def test_options_for_one_process_are_refused_in_ranks(run, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        main(["evaluate", str(run.folder), "--processes", "2"])
    assert "--processes is for one process, but a launcher started 16" in capsys.readouterr().err


def test_samples_of_a_gpu_with_little_memory(run, whole, monkeypatch):
    """A batch that is too large is halved, and each image keeps the noise of its number."""
    sizes, draw = [], module.sample_latents

    def small_gpu(run, settings, backbone, velocity, rows, *rest):
        sizes.append(len(rows))
        if sizes[-1] > 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return draw(run, settings, backbone, velocity, rows, *rest)

    monkeypatch.setattr(module, "sample_latents", small_gpu)
    halved = generate(run, 2, run.config.sampling)
    assert sizes[:7] == [100, 50, 25, 25, 25, 25, 25]
    assert (halved.images.int() - whole.images.int()).abs().max() <= 1  # sums of another order, rounded


def test_scores_say_how_they_were_measured(run, monkeypatch):
    with monkeypatch.context() as patch:  # parts are read one by one, and the whole file in batches
        read, sizes = StoredImages.images, []
        patch.setattr(StoredImages, "images", property(lambda self: sizes.append(len(self)) or read.fget(self)))
        records = score(run, 2, run.config.sampling, detector="randomconv", small_ok=True)
    assert max(sizes) == 100
    how = described(run, 2, run.config.sampling)
    for record in records:
        assert record.items() >= how.items()
        assert record["detector_hash"] and record["n_reference"] and record["machine"]
    assert score(run, 2, run.config.sampling, detector="randomconv", small_ok=True) == records
    assert len(run.results) == len(records)
    file = next((run.folder / "samples").glob("*.npz"))
    assert len(read_samples(file)) == 250


def test_guided_features_at_one_are_those_with_the_label(run):
    grid = extract(run, range(4), [2, 8], [0.4], root=run.folder.parent)
    assert torch.equal(grid.guided(8, 0.4, 1.0), grid.read(8, 0.4, "true"))


def test_images_that_are_not_finite_are_named(run):
    checkpoint = run.checkpoint(2)
    parts = {part: checkpoint.load(part) for part in ("model", "ema", "optimizer")}
    parts["ema"]["y_embedder.embedding_table.weight"][7] = torch.nan  # the label of samples 7, 17, ...
    save_checkpoint(run.folder / "checkpoints", 2, parts, checkpoint.state)
    settings = replace(run.config.sampling, count=20)
    said = rf"^sample 7 of run {run.name} at step 2 is not finite after step 1 of 2 of the sampler; did the run div"
    with pytest.raises(ValueError, match=said):
        generate(run, 2, settings)
    assert not list(run.folder.glob("samples/*.npz")) and not list(run.folder.glob(".held-*"))
    assert torch.isfinite(generate(run, 2, replace(settings, count=7)).images.float()).all()


def test_weights_that_were_not_kept_are_named(run):
    checkpoint = run.checkpoint(2)
    save_checkpoint(run.folder / "checkpoints", 2, {"ema": checkpoint.load("ema")}, {})
    with pytest.raises(ValueError, match="has no model weights; it has: ema"):
        generate(run, 2, replace(run.config.sampling, weights="raw"))
