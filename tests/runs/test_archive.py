"""Records of runs in a zip file, and back."""

import json
import resource
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.config import load_config, to_yaml
from workbench.files import write_json
from workbench.runs import archive as module
from workbench.runs.archive import pack_records, unpack_records
from workbench.runs.index import runs_table
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
    with pytest.raises(ValueError, match=rf"{runs[1].name} is stopped; only finished runs"):
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
        with pytest.raises(ValueError, match=rf"{name} is not a readable archive of runs"):
            unpack_records(tmp_path / name, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / runs[0].name).mkdir()
    with pytest.raises(ValueError, match="already exists and is not the run of"):
        unpack_records(pack_records(runs, tmp_path / "runs.zip"), tmp_path / "elsewhere")


GOOD = {
    "config.yaml": None,
    "provenance.json": b'{"fingerprint": "00112233445566aa", "created": 1.0}',
    "metrics.jsonl": b'{"step": 2, "loss": 1.0, "seconds": 3.0}\n',
}


@pytest.fixture
def archive(tmp_path):
    """Writes runs.zip of the good run "a" with other members, None for one that is left out."""
    good = {**GOOD, "config.yaml": to_yaml(load_config("demo/plain")).encode()}

    def write(changes: dict, name: str = "a", packed: int = zipfile.ZIP_DEFLATED) -> Path:
        members = {f"{name}/{key}": content for key, content in good.items()} | changes
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "runs.zip", "w", packed) as file:
            warnings.simplefilter("ignore")
            for path, content in members.items():
                for one in content if isinstance(content, list) else [content]:
                    if one is not None:
                        file.writestr(path, one)
        return tmp_path / "runs.zip"

    return write


def refused(file: Path, match: str) -> None:
    """The file is refused in one sentence that says so, and nothing of it is there."""
    root = file.parent / "placed"
    with pytest.raises(ValueError, match=match) as caught:
        unpack_records(file, root)
    assert str(caught.value).startswith(f"{file} is not a readable archive of runs: ")
    assert "\n" not in str(caught.value) and str(root) not in str(caught.value)
    assert {path.name for path in root.iterdir()} <= {".unpack-lock"}
    assert {path.name for path in file.parent.iterdir()} <= {"runs.zip", "placed", "runs"}


def test_the_good_run_is_placed(archive, tmp_path):
    (run,) = unpack_records(archive({}), tmp_path / "placed")
    assert (run.name, run.status["state"], run.status["step"]) == ("a", "finished", 2)
    folders = {"a/": b"", "sweeps/": b"", "sweeps/x/y/job.json": b'{"run": "a"}'}
    (run,) = unpack_records(archive(folders), tmp_path / "again")
    assert (tmp_path / "again" / "sweeps" / "x" / "y" / "job.json").read_bytes() == b'{"run": "a"}'


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        *(
            ("provenance.json", content, "provenance.json is damaged")
            for content in (
                b"[]",
                b"5",
                b"null",
                b'"fingerprint"',
                b"[" * 100_000,
                b'{"a":' * 100_000,
                b"\xff",
                b"{}",
                b'{"fingerprint": "ab"}',
                b'{"fingerprint": ["00112233445566aa"], "created": 1}',
                b'{"fingerprint": 1, "created": 1}',
                b'{"fingerprint": "00112233445566zz", "created": 1}',
                b'{"fingerprint": "00112233445566aa", "created": "x"}',
                b'{"fingerprint": "00112233445566aa", "created": NaN}',
                b'{"fingerprint": "00112233445566aa", "created": 1, "latents": 5}',
            )
        ),
        *(
            ("metrics.jsonl", content, "metrics.jsonl is damaged at line 1")
            for content in (
                b"5\n",
                b"[1, 2]\n",
                b"null\n",
                b"{}\n",
                b'{"step": 1}\n',
                b'{"step": "1", "seconds": 1}\n',
                b'{"step": 1, "seconds": null}\n',
                b'{"step": 1, "seconds": 1e999}\n',
                b"[" * 100_000 + b"\n",
            )
        ),
        ("provenance.json", None, "provenance.json is missing"),
        ("metrics.jsonl", None, "metrics.jsonl is missing"),
        ("metrics.jsonl", b"", "metrics.jsonl is empty"),
        ("metrics.jsonl", b'{"st', "metrics.jsonl has no records"),
        ("config.yaml", None, "config.yaml is missing"),
        *(
            ("config.yaml", content, "config.yaml")
            for content in (
                b"",
                b"5",
                b"- 1",
                b"data: [1",
                b"\xff\xfe\xff",
                b"nothing: 1",
                b"training: 3",
                b"[" * 5000,
                b"#" * 1_000_001,
            )
        ),
        ("history.jsonl", b"5\n5\n", "history.jsonl is damaged at line 1"),
        ("results.jsonl", b'{"metric": 1}\n', "results.jsonl is damaged at line 1"),
    ],
)
def test_a_damaged_run_in_an_archive_is_named(archive, file, content, why):
    path = archive({f"a/{file}": content})
    if content is not None and len(content) > 1_000_000:
        refused(path, "'a/config.yaml' unpacks to more than the 1,000,000 bytes that are allowed")
    elif (file, content) == ("provenance.json", None):
        refused(path, "run 'a' in the archive: provenance.json is missing")
    else:
        refused(path, f"run 'a' in the archive: {why}")


def test_one_damaged_run_keeps_all_of_an_archive_out(archive):
    good = archive({}).read_bytes()
    assert good
    other = {"b/config.yaml": b"x: 1", "b/provenance.json": GOOD["provenance.json"].replace(b"aa", b"bb")}
    refused(archive({**other, "b/metrics.jsonl": GOOD["metrics.jsonl"]}), "run 'b' in the archive: config.yaml")


@pytest.mark.parametrize(
    "name",
    [
        ".latents",
        ".trash",
        ".index.json",
        ".lock",
        "..",
        "x\ny",
        "x\x1b[31m",
        "<img src=x onerror=alert(1)>",
        "/etc",
        "C:",
        "x\\y",
        "x\u202ey",
        "a" * 201,
        " ",
        "x ",
        "x|y",
        "x*",
        "sweeps",
    ],
)
def test_names_that_no_run_has_are_refused(archive, name):
    refused(archive({}, name), "is not a (valid name of a run or of its files|file of a run's records)")


@pytest.mark.parametrize(
    "path",
    [
        "sweeps/run.sh",
        "sweeps/a/b/run.sh",
        "sweeps/a/job.json",
        "sweeps/../../x/job.json",
        "sweeps/a/../job.json",
        "a/run.sh",
        "a/status.json",
        "a/checkpoints/step-00000001/state.json",
        "a/b/metrics.jsonl",
        "../a/metrics.jsonl",
        "/tmp/metrics.jsonl",
        "metrics.jsonl",
        "a//metrics.jsonl",
        "/".join(["x"] * 1000),
    ],
)
def test_members_that_are_no_records_are_refused(archive, path):
    refused(archive({path: b"{}"}), "is not a (valid name of a run or of its files|file of a run's records)")


def test_more_than_is_allowed_is_refused(archive, monkeypatch):
    refused(
        archive({"sweeps/a/b/job.json": b" " * 4_000_001}), "'sweeps/a/b/job.json' unpacks to more than the 4,000,000"
    )
    refused(archive({"a/metrics.jsonl": b"\n" * 64_000_001}), "'a/metrics.jsonl' unpacks to more than the 64,000,000")
    refused(archive({"a/metrics.jsonl": [GOOD["metrics.jsonl"]] * 2}), "it contains 'a/metrics.jsonl' twice")
    many = {f"sweeps/a/{number}/job.json": b"{}" for number in range(30)}
    monkeypatch.setattr(module, "_MEMBERS", 30)
    refused(archive(many), "it has 33 members; at most 30 are read")
    monkeypatch.setattr(module, "_TOTAL", 1000)
    refused(archive({}), "unpacks to more than the 1,000 bytes that are allowed")
    monkeypatch.setattr(module, "_DIRECTORY", 100)
    refused(archive({}), "its list of members is longer than the 100 bytes that are allowed")


def test_other_ways_of_packing_and_damage_are_refused(archive, tmp_path):
    refused(archive({}, packed=zipfile.ZIP_LZMA), "is encrypted, or not compressed with deflate")
    raw = archive({}).read_bytes()
    encrypted = raw.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    assert encrypted != raw
    (tmp_path / "runs.zip").write_bytes(encrypted)
    refused(tmp_path / "runs.zip", "is encrypted, or not compressed with deflate")
    for content in (b"", b"PK", raw[: len(raw) // 2], raw[:60] + bytes(20) + raw[80:], bytes(len(raw))):
        (tmp_path / "runs.zip").write_bytes(content)
        refused(tmp_path / "runs.zip", ".")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    for path, why in (
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "x", "it does not exist"),
    ):
        with pytest.raises(ValueError, match=f"{path} is not a readable archive of runs: .*{why}"):
            unpack_records(path, tmp_path / "placed")


def test_a_place_that_cannot_be_written_is_not_blamed_on_the_file(archive, tmp_path):
    file = archive({})
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=f"^{tmp_path / 'taken'} cannot be written: File exists$"):
        unpack_records(file, tmp_path / "taken")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # as a full disk
    try:
        with pytest.raises(ValueError, match=rf"^{tmp_path}/full/.*config.yaml cannot be written: File too large$"):
            unpack_records(file, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "full").iterdir()] == [".unpack-lock"]


@pytest.mark.fuzz
@given(data=st.data())
def test_generated_archives_are_placed_or_refused(data, tmp_path_factory):
    json_text = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4)
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode())
    content = st.binary(max_size=30) | json_text | json_text.map(lambda line: line + b"\n" + line + b"\n")
    good = {**GOOD, "config.yaml": to_yaml(load_config("demo/plain")).encode()}
    name = data.draw(st.sampled_from(["a", "b c", "..", ""]) | st.text(max_size=5))
    members = {f"{name}/{key}": data.draw(st.just(whole) | content) for key, whole in good.items()}
    paths = st.sampled_from(["a/results.jsonl", "a/history.jsonl", "sweeps/a/b/job.json", "x/y"]) | st.text(max_size=8)
    members |= data.draw(st.dictionaries(paths, content, max_size=3))
    folder = tmp_path_factory.mktemp("fuzz")
    with zipfile.ZipFile(folder / "x.zip", "w") as file:
        for path, written in members.items():
            file.writestr(zipfile.ZipInfo(path.encode(errors="replace").decode() or "x"), written)
    raw = bytearray((folder / "x.zip").read_bytes())
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x.zip").write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            placed = unpack_records(folder / "x.zip", folder / "runs")
        except ValueError:
            placed = []
        assert [row.damage for row in runs_table(folder / "runs")] == [""] * len(placed)
    shutil.rmtree(folder)


KEYS = ("fingerprint", "created", "step", "seconds", "metric", "value", "what", "option", "new", "latents", "run")
