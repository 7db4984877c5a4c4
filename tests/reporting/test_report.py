import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench.config import Config, Plugin, TrainingConfig, from_dict, to_dict
from workbench.reporting import figures
from workbench.reporting.findings import duration, findings, number, percent, verdict
from workbench.reporting.report import score_tables, settings, write_report
from workbench.runs.store import Run, prepare_run

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Ankle boot"]
STEPS = (1000, 2000, 3000, 4000)
# Ten steps a second, so plain step 4000 is at 400 s; the guided run adds the teacher's 200 s to its own.
FD = {"teacher": (60.0, 40.0), "plain": (50.0, 30.0, 20.0, 16.0), "guided": (40.0, 24.0, 14.0, 10.0)}


def score(metric: str, value: float, step: int, **more) -> dict:
    how = {
        "n_generated": 2000,
        "sampler": "heun",
        "sampler_steps": 20,
        "guidance_scale": 1.0,
        "weights": "ema",
    }
    return {"metric": metric, "value": value, "step": step, "sample_seed": 0, "train_seed": 0, **how, **more}


def write_run(root: Path, label: str, plugin: Plugin, fd: dict[str, tuple[float, ...]] = FD) -> Run:
    training = TrainingConfig(steps=2000 if label == "teacher" else 4000, batch=64)
    config = from_dict(to_dict(replace(Config(name=label), objective=plugin, training=training)))
    run = prepare_run(config, root)
    random = np.random.default_rng(0)
    for step in range(50, training.steps + 1, 50):
        denoise = 0.8 + 1.5 / (1 + step / 200) + 0.03 * random.standard_normal()
        alignment = None if label == "plain" else 1.0 / (1 + step / 500)
        record = {"step": step, "loss": denoise, "denoise": denoise, "alignment": alignment}
        run.append("metrics.jsonl", {**record, "images_per_second": 640.0, "seconds": step / 10})
    for step, value in zip(STEPS, fd[label], strict=False):
        run.append("results.jsonl", score("fd-clf64", value, step, n_reference=10_000, floor=1.5))
        run.append("results.jsonl", score("kid-clf64", value / 500, step, n_reference=10_000, floor=0.0004))
        share = 0.9 if label == "guided" else 0.8
        run.append("results.jsonl", score("class-agreement", share, step, low=share - 0.02, high=share + 0.02))
    for layer in range(13):
        value = 0.85 - 0.003 * (layer - 6) ** 2 + (0.01 if label == "guided" else 0)
        probe = {"metric": "probe", "value": value, "step": training.steps, "layer": layer}
        run.append("results.jsonl", {**probe, "low": value - 0.02, "high": value + 0.02})
    return run


@pytest.fixture
def make(tmp_path):
    def make(fd: dict[str, tuple[float, ...]] = FD) -> dict[str, Run]:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        teacher = write_run(root, "teacher", Plugin("vae_align"), fd)
        plain = write_run(root, "plain", Plugin("denoise"), fd)
        options = {"teacher": str(teacher.folder), "teacher_step": 2000}
        guided = write_run(root, "guided", Plugin("self_transcendence", options), fd)
        return {"teacher": teacher, "plain": plain, "guided": guided}

    return make


def test_compute_counts_the_teacher_for_the_guided_run_only(make):
    runs = make()
    assert figures.compute_seconds(runs, "plain", [1000, 1025]).tolist() == [100.0, 102.5]
    assert figures.compute_seconds(runs, "guided", [1000, 4000]).tolist() == [300.0, 600.0]
    assert figures.compute_seconds(runs, "teacher", [2000]).tolist() == [200.0]


def test_findings_at_equal_steps_and_equal_compute(make):
    sentences = findings(make())
    assert sentences[0].startswith("At equal steps (4,000), FD-clf64 is 10 for guided and 16 for plain")
    assert "guided is better by 38\u202f%" in sentences[0]  # 6 / 16
    # Guided step 2000 costs 200 + 200 s, where the plain run has its step 4000: 24 against 16, half as much again.
    assert sentences[1].startswith("At equal total compute (6.7\u202fmin, teacher included")
    assert "FD-clf64 is 24 for guided and 16 for plain: guided is worse by 50\u202f%" in sentences[1]
    assert "Beyond 6.7\u202fmin there is no plain score" in sentences[1]


def test_the_plain_curve_is_interpolated_between_its_scores(make):
    runs = make({**FD, "guided": (21.0,)})
    plain = runs["plain"].folder / "results.jsonl"
    kept = [line for line in plain.read_text().splitlines() if '"step": 3000' not in line]
    plain.write_text("\n".join(kept) + "\n")
    # Guided step 1000 costs 300 s, half way between the plain scores of 30 at 200 s and 16 at 400 s: 23.
    assert "FD-clf64 is 21 for guided and 23 for plain: guided is better by 8.7\u202f%" in findings(runs)[1]


def test_no_curve_is_extended(make):
    runs = make({**FD, "plain": (50.0, 30.0)})
    assert "nothing can be compared" in findings(runs)[1]
    assert findings(runs)[0].startswith("At equal steps (2,000)")


def test_a_small_gap_and_a_worse_score(make):
    close = findings(make({**FD, "guided": (50.0, 30.0, 20.0, 15.5)}))[0]
    assert "within the noise margin" in close and "better" not in close
    worse = findings(make({**FD, "guided": (50.0, 30.0, 20.0, 20.0)}))[0]
    assert "guided is worse by 25\u202f%" in worse


def test_agreement_and_probes_are_judged_by_their_intervals(make):
    sentences = findings(make())
    agreement = next(s for s in sentences if s.startswith("Class agreement"))
    assert "0.9 [0.88,\u00a00.92] for guided and 0.8 [0.78,\u00a00.82] for plain" in agreement
    assert "do not overlap, and guided is higher" in agreement
    probe = next(s for s in sentences if s.startswith("Linear probe"))
    assert "best layer: 6 of guided, 6 of plain" in probe and "intervals overlap" in probe


def test_one_seed_is_always_mentioned_even_without_scores(make):
    runs = make()
    for run in runs.values():
        (run.folder / "results.jsonl").unlink()
    assert "nothing is compared" in findings(runs)[0]
    assert "a small gap is not evidence" in findings(runs)[-1]
    assert "1–2\u202f%" in findings(make())[-1]


def test_verdict():
    assert verdict("fd-clf64", {"value": 8.0}, {"value": 10.0}) == "better"
    assert verdict("class-agreement", {"value": 0.8}, {"value": 1.0}) == "worse"
    assert verdict("fd-clf64", {"value": 9.6}, {"value": 10.0}) == "within"
    assert verdict("kid-clf64", {"value": 0.001, "floor": 0.003}, {"value": 0.002, "floor": 0.003}) == "within"
    wide = {"value": 8.0, "low": 7.0, "high": 9.5}
    assert verdict("fd-clf64", wide, {"value": 10.0, "low": 9.0, "high": 11.0}) == "within"
    assert verdict("fd-clf64", wide, {"value": 10.0, "low": 9.6, "high": 11.0}) == "better"


def test_scores_measured_otherwise_are_not_mixed_in(make):
    runs = make()
    runs["guided"].append("results.jsonl", score("fd-clf64", 1.0, 4000, n_generated=50, n_reference=10_000))
    assert [r["value"] for r in figures.series(runs, "fd-clf64")["guided"]] == [40.0, 24.0, 14.0, 10.0]
    assert len(score_tables(runs)) == 2


def test_a_repeated_score_replaces_the_earlier(make):
    runs = make()
    runs["plain"].append("results.jsonl", score("fd-clf64", 17.0, 4000, n_reference=10_000, floor=1.5))
    assert figures.series(runs, "fd-clf64")["plain"][-1]["value"] == 17.0


def test_tables(make):
    runs = make()
    (table,) = score_tables(runs)
    assert list(table.columns) == ["run", "step", "FD-clf64", "KID-clf64", "class agreement"]
    assert table.caption.startswith("2,000 generated images, heun sampler, 20 steps, guidance scale 1, ema weights")
    rows = {tuple(row[:2]): row[2:] for row in table.rows}
    assert rows["guided", "4,000"] == ["10", "0.02", "0.9 [0.88,\u00a00.92]"]
    assert rows["real vs real (floor)", ""] == ["1.5", "0.0004", "–"]
    chosen = {row[0]: row[1:] for row in settings(runs).rows}
    assert chosen["feature guidance w"] == ["–", "–", "30"]
    assert chosen["steps"] == ["2,000", "4,000", "4,000"]
    assert chosen["training time"] == ["3.3\u202fmin", "6.7\u202fmin", "6.7\u202fmin"]


def test_numbers_as_text():
    assert [number(v) for v in (1234.5, 12.345, -0.00123)] == ["1,234", "12.3", "\u22120.00123"]
    assert [percent(v) for v in (0.05, 0.087, 0.375)] == ["5\u202f%", "8.7\u202f%", "38\u202f%"]
    assert [duration(v) for v in (48, 2100, 7500)] == ["48\u202fs", "35\u202fmin", "2\u202fh\u202f05\u202fmin"]


def test_score_curves_axes(make):
    runs = make()
    (axis,) = figures.score_curves(runs, "fd-clf64").axes
    assert axis.get_yscale() == "log"  # from the floor 1.5 to 60
    assert axis.get_xlabel() == "training step" and "FD-clf64" in axis.get_ylabel()
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"teacher", "plain", "guided", "real vs real (floor)"}
    assert (lines["guided"].get_color(), lines["guided"].get_linestyle()) == ("#d55e00", "--")
    (axis,) = figures.score_curves(runs, "fd-clf64", "compute").axes
    assert "teacher's included" in axis.get_xlabel() and "minutes" in axis.get_xlabel()
    guided = next(line for line in axis.lines if line.get_label() == "guided")
    assert guided.get_xdata().tolist() == [5.0, 400 / 60, 500 / 60, 10.0]
    (axis,) = figures.score_curves(runs, "class-agreement").axes
    assert axis.get_yscale() == "linear"


def test_loss_curves_leave_out_alignment_that_was_off(make):
    runs = make()
    assert len(figures.loss_curves(runs).axes) == 2
    assert len(figures.loss_curves({"plain": runs["plain"]}).axes) == 1


def test_refusals(make, maps, tmp_path):
    runs = make()
    with pytest.raises(ValueError, match="metric 'fd-clf6' is not known; did you mean 'fd-clf64'"):
        figures.score_curves(runs, "fd-clf6")
    with pytest.raises(ValueError, match="no run has a score 'fid'"):
        figures.score_curves(runs, "fid")
    with pytest.raises(ValueError, match="3 samples for 4 class names"):
        figures.sample_grid({"plain": {1000: np.zeros((3, 1, 8, 8), np.uint8)}}, NAMES)
    content = {
        "samples": {},
        "class_names": [],
        "sample_guidance": 1.0,
        "maps": maps,
        "seconds_total": 1.0,
    }
    with pytest.raises(ValueError, match="needs the runs teacher, plain, guided; got plain"):
        write_report(tmp_path / "r.html", title="x", runs={"plain": runs["plain"]}, **content)


def test_png_is_reproducible(make):
    runs = make()
    first, second = (figures.png(figures.probe_by_layer(runs)) for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def maps():
    return wb.maps(wb.zoo("guided"), images=2, layers=[4, 8], times=[0.5], progress=lambda stage, done, total: None)


@pytest.fixture
def written(make, maps, tmp_path) -> Path:
    random = np.random.default_rng(0)
    samples = {
        label: {step: random.integers(0, 256, (4, 1, 28, 28), dtype=np.uint8) for step in (1000, 4000)}
        for label in ("plain", "guided")
    }
    return write_report(
        tmp_path / "report.html",
        title="Teacher <plain> & guided",
        runs=make(),
        samples=samples,
        class_names=NAMES,
        sample_guidance=2.5,
        maps=maps,
        seconds_total=1500.0,
    )


def test_report_is_one_file_that_needs_nothing_else(written):
    page, embedded, rest = re.split(r'srcdoc="([^"]*)"', written.read_text())
    assert html.unescape(embedded).startswith("<!DOCTYPE html>")
    page += rest
    assert page.startswith("<!DOCTYPE html>") and '<html lang="en">' in page
    assert "Guidance scale\n2.5 for the pictures, 1 for the scores below." in page
    assert "<h1>Teacher &lt;plain&gt; &amp; guided</h1>" in page
    sources, alts = re.findall(r'src="([^"]{22})', page), re.findall(r'<img [^>]*alt="([^"]+)"', page)
    assert sources == ["data:image/png;base64,"] * 5 and len(alts) == 5
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    for needed in (
        'name="viewport"',
        "prefers-color-scheme: dark",
        "@media print",
        "FD-clf64 is not FID",
        "25\u202fmin",
    ):
        assert needed in page
    assert list(written.parent.glob(".report*")) == []


def test_the_maps_of_the_report_obey_their_slider(browser, written):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page, wrong = context.new_page(), []
    page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(written.as_uri())
    frame = page.frame_locator("iframe")
    slider = frame.get_by_role("slider", name="guidance w", exact=True)
    slider.scroll_into_view_if_needed()
    shown = frame.locator("canvas").last  # the first is the image
    before = shown.evaluate("canvas => canvas.toDataURL()")
    slider.fill("10")
    page.wait_for_timeout(200)
    assert shown.evaluate("canvas => canvas.toDataURL()") != before and not wrong
    context.close()
