"""Records of runs in a zip file, and back."""

import zipfile

import pytest

from workbench.config import load_config
from workbench.files import write_json
from workbench.runs.archive import pack_records, unpack_records
from workbench.runs.store import Run, find_runs, prepare_run


@pytest.fixture
def runs(tmp_path):
    """Two finished runs, the first of which a row of a sweep made."""
    root, made = tmp_path / "runs", []
    for seed in (0, 1):
        run = prepare_run(load_config("demo/plain", [f"training.seed={seed}"]), root)
        for step in (1, 2):
            run.append("metrics.jsonl", {"step": step, "seconds": 1.5 * step, "loss": 1.0 / step})
        run.append("results.jsonl", {"metric": "fd-clf64", "step": 2, "value": 3.0 + seed})
        (run.folder / "checkpoints").mkdir()
        (run.folder / "checkpoints" / "large").write_bytes(bytes(1000))
        run.write_status("finished", 2, seconds=3.0)
        made.append(run)
    job = root / "sweeps" / "laptop" / "plain-0"
    job.mkdir(parents=True)
    write_json(job / "job.json", {"state": "finished", "run": made[0].name})
    return made


def test_what_is_packed_comes_back_without_weights(runs, tmp_path):
    there = tmp_path / "elsewhere"
    placed = unpack_records(pack_records(runs, tmp_path / "new" / "runs.zip"), there)
    assert {run.name for run in placed} == {run.name for run in runs} == {run.name for run in find_runs(there)}
    for run in runs:
        again = Run(there / run.name)
        assert again.config == run.config and again.fingerprint == run.fingerprint
        assert again.metrics == run.metrics and again.results == run.results and not again.checkpoints
        assert (again.status["state"], again.status["step"], again.status["seconds"]) == ("finished", 2, 3.0)
    assert (there / "sweeps" / "laptop" / "plain-0" / "job.json").is_file()


def test_equal_runs_are_equal_bytes_and_what_is_there_stays(runs, tmp_path):
    first, second = (pack_records(runs, tmp_path / name) for name in ("a.zip", "b.zip"))
    assert first.read_bytes() == second.read_bytes()
    assert unpack_records(first, runs[0].folder.parent) == []
    assert (runs[0].folder / "checkpoints" / "large").is_file()
    (only,) = unpack_records(pack_records(runs[:1], tmp_path / "c.zip"), tmp_path / "half")
    (other,) = unpack_records(first, tmp_path / "half")
    assert (only.name, other.name) == (runs[0].name, runs[1].name)


def test_a_run_that_has_not_finished_is_not_packed(runs, tmp_path):
    runs[1].write_status("stopped", 1)
    with pytest.raises(ValueError, match=rf"{runs[1].name} is stopped; only what has finished"):
        pack_records(runs, tmp_path / "runs.zip")
    assert not (tmp_path / "runs.zip").exists()


def test_other_files_and_taken_places_are_refused(runs, tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a/b.txt", "hello")
    with zipfile.ZipFile(tmp_path / "broken.zip", "w") as archive:
        archive.writestr("a/provenance.json", "{")
    with zipfile.ZipFile(tmp_path / "untrained.zip", "w") as archive:
        archive.writestr("a/provenance.json", '{"fingerprint": "ab", "created": 1.0}')
    for name in ("text.zip", "other.zip", "broken.zip", "untrained.zip", "none.zip"):
        with pytest.raises(ValueError, match=rf"{name} holds no records of runs"):
            unpack_records(tmp_path / name, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / runs[0].name).mkdir()
    with pytest.raises(ValueError, match="is there already"):
        unpack_records(pack_records(runs, tmp_path / "runs.zip"), tmp_path / "elsewhere")
