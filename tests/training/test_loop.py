"""Training: exact resuming after real kills, agreement of processes, stopping, divergence."""

import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import preloaded
import pytest
import torch

from workbench.config import load_config
from workbench.data.latents import open_latents
from workbench.diffusion.sampling import sample
from workbench.evaluation.generate import generate
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.store import Run, find_runs, open_run, prepare_run
from workbench.training.batches import draw_batch, prefetched
from workbench.training.loop import Diverged, fit
from workbench.training.state import TrainState

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "data.name=digits",
    "data.source=auto",
    "data.limit=64",
    "vae.name=identity",
    "backbone.patch=8",
    "backbone.size=pico",
    "training.steps=12",
    "training.batch=8",
    "training.log_every=2",
    "training.checkpoint_every=3",
    "training.milestone_every=6",
    # Bits and rounding are compared.
    "training.optimizer=adamw",
    "training.precision=no",
)
TEACHER = (*SMALL, "objective.head_width=16")


def weights(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = run.checkpoint(run.config.training.steps)
    tensors = {part: checkpoint.load(part) for part in ("model", "ema", "optimizer")}
    return {f"{part}:{name}": value for part, named in tensors.items() for name, value in named.items()}


def assert_identical(first: Run, second: Run) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:3]


def train(config, root: Path) -> Run:
    list(fit(config, root))
    return prepare_run(config, root)


def guided_config(root: Path, *overrides: str):
    teacher = train(load_config("demo/teacher", TEACHER), root)
    options = (*TEACHER, "objective.stop_step=6", f"objective.teacher={teacher.folder}", *overrides)
    return load_config("demo/guided", options)


def command(root: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "WORKBENCH_RUNS": str(root), "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "workbench", "train", *arguments], environment


def test_teacher_guides_and_stops(tmp_path):
    config = guided_config(tmp_path)
    records = list(fit(config, tmp_path))
    assert [r["step"] for r in records if r["alignment"] is not None] == [2, 3, 4, 6]
    assert [r["step"] for r in records if r["alignment"] is None] == [8, 9, 10, 12]
    assert all(r["norm_difference"] > 0 for r in records[:3])
    run = prepare_run(config, tmp_path)
    assert run.status["state"] == "finished"
    assert [c.step for c in run.checkpoints] == [6, 12]  # the newest, and the milestone's weights
    assert not run.checkpoint(6).resumable


def test_stopped_generator_resumes_to_the_same_weights(tmp_path):
    config = load_config("demo/plain", SMALL)
    whole = train(config, tmp_path / "whole")
    for record in fit(config, tmp_path / "cut"):
        if record["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
    stopped = open_run(find_runs(tmp_path / "cut")[0].folder)
    assert stopped.status["state"] == "stopped" and stopped.status["step"] < 12
    assert_identical(whole, train(config, tmp_path / "cut"))
    assert [r["step"] for r in whole.metrics] == [2, 3, 4, 6, 8, 9, 10, 12]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_a_random_moment_resumes_bit_identically(tmp_path, processes):
    options = (*SMALL, "training.steps=60")
    if processes == 1:
        whole = train(load_config("demo/plain", options), tmp_path / "whole")
    else:
        arguments, environment = command(tmp_path / "whole", "demo/plain", *options, f"--processes={processes}")
        subprocess.run(arguments, env=environment, check=True, capture_output=True)
        (whole,) = find_runs(tmp_path / "whole")
    arguments, environment = command(tmp_path / "cut", "demo/plain", *options, f"--processes={processes}")
    for _ in range(2):
        process = subprocess.Popen(
            arguments, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        step = random.randint(2, 40)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if any(run.status["step"] >= step for run in find_runs(tmp_path / "cut") if run.metrics):
                break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was still training
    environment |= {preloaded.FRESH: "1"} if processes == 1 else {}  # as a user starts it, once
    subprocess.run(arguments, env=environment, check=True, capture_output=True)
    assert_identical(whole, find_runs(tmp_path / "cut")[0])


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    options = ("demo/plain", *SMALL)
    for processes in (1, 2):
        arguments, environment = command(tmp_path / str(processes), *options, f"--processes={processes}")
        subprocess.run(arguments, env=environment, check=True, capture_output=True)
    one, two = (weights(find_runs(tmp_path / str(n))[0]) for n in (1, 2))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


def test_accumulation_agrees_with_one_batch(tmp_path):
    whole = train(load_config("demo/plain", SMALL), tmp_path)
    parts = train(load_config("demo/plain", (*SMALL, "training.accumulation=4")), tmp_path)
    a, b = weights(whole), weights(parts)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)
    for key in ("loss", "gradient_norm"):
        assert [r[key] for r in parts.metrics] == pytest.approx([r[key] for r in whole.metrics], rel=1e-3)


def test_leaving_the_records_saves_where_training_stands(tmp_path):
    config = load_config("demo/plain", SMALL)
    for record in fit(config, tmp_path):
        if record["step"] == 8:
            break
    run = prepare_run(config, tmp_path)
    assert run.status["state"] == "stopped" and run.checkpoints[-1].step == 8
    assert_identical(train(config, tmp_path / "whole"), train(config, tmp_path))


def test_wrong_sampling_is_found_before_training(tmp_path):
    config = load_config("demo/plain", SMALL)  # which refuses it sooner
    with pytest.raises(ValueError, match="sampling.shift must be above 0"):
        list(fit(replace(config, sampling=replace(config.sampling, shift=-1.0)), tmp_path))
    assert not find_runs(tmp_path)


def test_fp16_needs_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        list(fit(load_config("demo/plain", (*SMALL, "training.precision=fp16")), tmp_path))


def test_batches_come_in_order_one_ahead():
    drawn, taken = [], []
    for batch in prefetched(lambda n=n: drawn.append(n) or n for n in range(4)):
        taken.append(batch)
        time.sleep(0.05)
        assert drawn == list(range(min(4, len(taken) + 1)))
    assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize("asked", [True, False])
def test_tf32_is_of_the_training_alone(tmp_path, monkeypatch, asked):
    def allowed() -> list:
        places = torch.backends.cuda.matmul, torch.backends.cudnn
        return [*(place.allow_tf32 for place in places), torch.get_float32_matmul_precision()]

    before, seen, update = allowed(), [], TrainState.update
    monkeypatch.setattr(TrainState, "update", lambda *given: seen.append(allowed()[:2]) or update(*given))
    config = load_config("demo/plain", (*SMALL, f"training.tf32={asked}"))
    for record in fit(config, tmp_path):
        assert allowed() == before
        if record["step"] == 4:
            break
    assert allowed() == before
    run = train(config, tmp_path)
    assert seen == [[asked, asked]] * 12 and allowed() == before
    with pytest.raises(Diverged):
        list(fit(load_config("demo/plain", (*SMALL, "training.learning_rate=1e30")), tmp_path))
    assert allowed() == before
    seen.clear()
    settings = replace(run.config.sampling, count=2, steps=2)
    monkeypatch.setattr(
        "workbench.evaluation.generate.sample", lambda *a, **k: seen.append(allowed()[:2]) or sample(*a, **k)
    )
    generate(run, 12, settings)
    assert seen == [[asked, asked]] and allowed() == before


def test_an_error_while_drawing_is_raised():
    def broken():
        raise ValueError("damaged shard")

    with pytest.raises(ValueError, match="damaged shard"):
        list(prefetched([lambda: 1, broken]))


def test_not_a_number_names_step_seed_and_checkpoint(tmp_path):
    config = load_config("demo/plain", (*SMALL, "training.learning_rate=1e30", "training.warmup_steps=0"))
    with pytest.raises(Diverged, match=r"step \d+ \(data seed 0.*last good checkpoint is"):
        list(fit(config, tmp_path))
    assert prepare_run(config, tmp_path).status["state"] == "failed"


def test_a_last_update_that_is_not_finite_fails(tmp_path):
    # The only loss and the norm of its gradient are finite; what the update makes of the weights is not.
    config = load_config("demo/plain", (*SMALL, "training.learning_rate=3e38", "training.warmup_steps=0"))
    config = replace(config, training=replace(config.training, steps=1))
    with pytest.raises(Diverged, match=r"^model backbone\.\S+ is not finite after step 1; .* checkpoint is none"):
        list(fit(config, tmp_path))
    run = prepare_run(config, tmp_path)
    assert run.status["state"] == "failed" and run.checkpoints == []


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path):
    run = train(load_config("demo/plain", SMALL), tmp_path)
    found = run.checkpoint(12)
    for part, name in (("optimizer", "backbone.x_embedder.proj.weight/exp_avg_sq"), ("ema", "x_embedder.proj.weight")):
        parts = {kind: found.load(kind) for kind in ("model", "ema", "optimizer")}
        parts[part][name].view(-1)[3] = torch.inf
        found = save_checkpoint(run.folder / "checkpoints", 12, parts, found.state)
        with pytest.raises(Diverged, match=rf"^{part} {re.escape(name)} is not finite after step 12; .* is step 6"):
            list(fit(run.config, tmp_path))
        assert open_run(run.folder).status["state"] == "failed"


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    config = load_config("demo/plain", SMALL)
    with contextlib.closing(fit(config, tmp_path)) as records:
        next(records)
    run = prepare_run(config, tmp_path)
    found = run.checkpoints[-1]
    for part, change in itertools.product(("model", "ema", "optimizer"), ("renamed", "reshaped", "missing")):
        parts = {kind: found.load(kind) for kind in ("model", "ema", "optimizer")}
        whole = parts[part].copy()
        name = next(name for name, value in whole.items() if value.ndim)
        value = parts[part].pop(name)
        if change != "missing":
            # Moments of another shape would have the optimizer read beyond the end of a tensor.
            parts[part][f"other/{name}" if change == "renamed" else name] = value.flatten()[:1]
        save_checkpoint(run.checkpoint_folder, found.step, parts, found.state)
        with pytest.raises(ValueError, match="of the checkpoint is") as error:
            list(fit(config, tmp_path))
        assert (name.rpartition("/")[0] or name) in str(error.value) and "\n" not in str(error.value)
        found = save_checkpoint(run.checkpoint_folder, found.step, {**parts, part: whole}, found.state)


def test_changed_latents_are_refused(tmp_path):
    config = load_config("demo/plain", SMALL)
    run = train(config, tmp_path)
    provenance = run.provenance
    provenance["latents"]["content"] = "another"
    (run.folder / "provenance.json").write_text(__import__("json").dumps(provenance))
    with pytest.raises(ValueError, match="other images or with another VAE"):
        list(fit(config, tmp_path))


def test_mismatched_teacher_is_refused(tmp_path):
    config = guided_config(tmp_path, "backbone.qk_norm=true")
    with pytest.raises(ValueError, match="must be the same"):
        list(fit(config, tmp_path))


@pytest.mark.slow
def test_batch_that_processes_cannot_share(tmp_path):
    arguments, environment = command(tmp_path, "demo/plain", *SMALL, "training.batch=7", "--processes=2")
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot be divided among 2 processes" in done.stderr
    assert "Traceback" not in done.stderr


def test_log_normal_times_follow_the_path(tmp_path):
    plain = load_config("demo/plain", (*SMALL, "diffusion.time=lognormal"))
    turned = load_config("demo/plain", (*SMALL, "diffusion.time=lognormal", "diffusion.path=cosine"))
    latents = open_latents(plain, "train", tmp_path)
    straight, bent = (draw_batch(config, latents, {}, 3, range(8)).t.double() for config in (plain, turned))
    # The same ratio of noise to data on both paths: t / (1 - t) on the straight one, tan(pi t / 2) on the other.
    torch.testing.assert_close(torch.tan(torch.pi / 2 * bent), straight / (1 - straight), rtol=1e-4, atol=0)
    assert (bent - straight).abs().max() > 0.01
