"""One bad file of one run: that run says so, every other one is as before, and one command takes the bad one away."""

import errno
import json
import os
import resource
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from workbench.cli.watch import view
from workbench.config import load_config
from workbench.files import append_jsonl, read_json, write_json
from workbench.lab.watching.state import panel_state
from workbench.lab.watching.table import table_rows
from workbench.runs.history import read_history, record_event
from workbench.runs.index import runs_table
from workbench.runs.shelf import restore, set_notes, trash, trashed
from workbench.runs.store import Run, find_runs, open_run, prepare_run

DEEP = b"[" * 50_000
WRONG_TYPES = json.dumps(
    dict.fromkeys(
        ("fingerprint", "created", "state", "step", "host", "tags", "notes", "loss", "seconds", "metric", "value"), [1]
    )
    | {"what": 4, "commands": 5}
).encode()
CONTENTS = {
    "empty": b"",
    "cut": b'{"step": 1, "lo',
    "a number": b"5\n",
    "a list": b"[1, 2]\n",
    "null": b"null\n",
    "no keys": b"{}\n",
    "deep": DEEP,
    "deep lines": DEEP + b"\n" + DEEP + b"\n",
    "not UTF-8": b"\xff\xfe\x00\x80\n\xff\n",
    "huge number": b'{"step": ' + b"9" * 400 + b', "created": 1e999, "value": 1}\n',
    "wrong types": WRONG_TYPES + b"\n",
    "wrong types in a list": b'{"tags": [1], "devices": ["x"], "what": "launch", "step": 1, "loss": "x"}\n',
    "half a character": b'{"state": "\\ud800", "metric": "\\ud800", "value": 1, "what": "\\ud800", "step": 1, '
    b'"loss": "", "tags": ["\\ud800"]}\n',
}
# Files whose damage the table of runs shows, and contents that are no damage in them.
SHOWN = {
    "config.yaml": (),
    "provenance.json": (),
    "status.json": (),
    "metrics.jsonl": ("empty", "cut"),
    "history.jsonl": ("empty", "cut", "half a character"),
    "results.jsonl": ("empty", "cut", "half a character"),
    "notes.json": ("no keys", "huge number", "half a character"),
}
KEPT = ("control.json", "log.txt", ".curves", "../.index.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    for seed in (0, 1):
        run = prepare_run(load_config("demo/plain", [f"training.seed={seed}"]), root)
        run.append("metrics.jsonl", {"step": 5, "loss": 0.5, "seconds": 3.0})
        run.append("results.jsonl", {"metric": "fd-clf64", "value": 9.0, "step": 5})
        record_event(run.folder, 0, "launch", processes=1)
        run.write_status("stopped", 5, steps=700)
        set_notes(run, tags=["a"], notes="b")
    return root


@pytest.fixture
def root(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "runs"))


def damaged(root: Path, name: str) -> Path:
    """The file of the first run, gone, to be put there in another form."""
    file = sorted(run.folder for run in find_runs(root))[0] / name
    file.unlink(missing_ok=True)
    return file


def check(root: Path, file: Path, shown: bool | None) -> None:
    """The table has both runs, the other one whole; every reader of the bad one ends well or with a ValueError."""
    before = {row.name: row for row in runs_table(root)}
    bad, other = sorted(before)
    assert not before[other].damage and (before[other].loss, before[other].tags) == (0.5, ("a",))
    if shown is not None:
        assert (file.name in before[bad].damage) == shown, before[bad].damage
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Run(root / other) in find_runs(root)
        for read in (
            lambda run: run.config,
            lambda run: run.provenance,
            lambda run: run.status,
            lambda run: run.metrics,
            lambda run: run.results,
            lambda run: run.checkpoints,
            lambda run: read_history(run.folder),
            lambda run: run.rewind(3),
        ):
            try:
                read(Run(root / bad))
            except ValueError as error:
                assert str(root) in str(error)
        console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(view([Run(root / bad), Run(root / other)], 120))
        picture = console.export_text()
        assert other in picture and "step 5 of 700" in picture
        states = [panel_state(Run(root / name)) for name in (bad, other)]
        json.dumps([states, table_rows(root)], allow_nan=False, ensure_ascii=False).encode()  # as a page is sent them
        trash(open_run(bad, root, damaged=True))
    assert trashed(root) == [bad] and [row.name for row in runs_table(root)] == [other]
    assert restore(bad, root).name == bad


@pytest.mark.parametrize("name", [*SHOWN, *KEPT])
def test_a_bad_file_hides_no_other_run(root, name):
    file = damaged(root, name)
    for content, written in CONTENTS.items():
        file.write_bytes(written)
        check(root, file, content not in SHOWN[name] if name in SHOWN else None)


@pytest.mark.parametrize("name", [*SHOWN, "checkpoints", *KEPT])
def test_something_else_in_place_of_a_file_hides_no_other_run(root, name):
    file = damaged(root, name)
    os.mkfifo(file)  # opened as a file it would be waited for
    check(root, file, name in SHOWN or name == "checkpoints")
    file.unlink()
    file.symlink_to("/dev/zero")  # read as a file it would never end
    check(root, file, name in SHOWN or name == "checkpoints")
    file.unlink()
    file.mkdir()
    check(root, file, name in SHOWN)


def test_files_without_end_are_not_read(root):
    file = damaged(root, "status.json")
    with file.open("wb") as opened:
        opened.truncate(10**12)  # takes no room
    rows = {row.folder: row for row in runs_table(root)}
    assert "at most 16,000,000 are read" in rows[file.parent].damage
    with pytest.raises(ValueError, match="has 1,000,000,000,000 bytes; at most"):
        read_json(file)


def test_a_table_that_was_kept_is_checked_as_any_file(root):
    before = runs_table(root)
    index = read_json(root / ".index.json")
    nested = ({"scores": {"fd-clf64": "x"}}, {"tags": [5]}, {"layers": {"a": 1}})
    for wrong in ([1], {"scores": 5}, {"seed": "x"}, *nested):
        changed = json.loads(json.dumps(index))
        for entries in changed["runs"].values():
            for entry in entries.values():
                entry["value"] = wrong
        write_json(root / ".index.json", changed)
        assert runs_table(root) == before
    for wrong in (5, [], {before[0].name: 5}, {before[0].name: {"config.yaml": [1]}}):
        write_json(root / ".index.json", {**index, "runs": wrong})
        assert runs_table(root) == before


def test_a_run_that_lost_its_provenance_is_still_seen(root):
    bad = damaged(root, "provenance.json").parent.name
    assert runs_table(root)[0].damage == f"{root / bad}/provenance.json does not exist"
    with pytest.warns(UserWarning, match="does not exist"), pytest.raises(ValueError, match="a folder but not a run"):
        open_run(bad, root)
    trash(open_run(bad, root, damaged=True))
    assert trashed(root) == [bad]


def test_a_line_is_named(root):
    run = find_runs(root)[0]
    for line in ("5", "[1]", "null", "{}", '{"step": "x"}', '{"step": true}', '{"step": 1, "loss": "x"}'):
        (run.folder / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
        with pytest.raises(ValueError, match=r"metrics.jsonl is damaged at line 2"):
            print(run.metrics)
        with pytest.raises(ValueError, match=r"metrics.jsonl is damaged at line 2"):
            run.rewind(0)
        assert (run.folder / "metrics.jsonl").read_text().endswith(f"{line}\n")


def test_a_teacher_is_known_though_the_provenance_of_its_student_is_damaged(tmp_path):
    teacher = prepare_run(load_config("demo/teacher"), tmp_path)
    for overrides in ([], [f"objective.teacher={teacher.name}", "training.seed=1"]):
        student = prepare_run(load_config("demo/guided", overrides), tmp_path)
        (student.folder / "provenance.json").write_text("{")
        with warnings.catch_warnings(), pytest.raises(ValueError, match=f"is the teacher of {student.name}"):
            warnings.simplefilter("ignore")
            trash(teacher)
        trash(open_run(student.name, tmp_path, damaged=True))


def test_damaged_notes_are_replaced_as_a_whole(root):
    run = find_runs(root)[0]
    (run.folder / "notes.json").write_text('{"tags": null}')
    with pytest.raises(ValueError, match="notes.json is damaged: tags must be a list.*give both tags and text"):
        set_notes(run, tags=["x"])
    set_notes(run, tags=["x"], notes="")
    assert runs_table(root)[0].tags == ("x",)


@pytest.fixture
def unprivileged():
    """A folder that a user without rights can enter, and a function that turns this process into one until the end."""
    folder = Path(tempfile.mkdtemp(prefix="workbench-test-"))
    folder.chmod(0o755)
    before = os.geteuid()

    def give_up() -> None:
        if before == 0:
            os.seteuid(65_534)

    yield folder, give_up
    os.seteuid(before)
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_what_may_not_be_read_is_named(made, unprivileged):
    folder, give_up = unprivileged
    root = Path(shutil.copytree(made, folder / "runs"))
    root.chmod(0o755)
    bad, whole = sorted(path.name for path in root.iterdir() if path.is_dir())
    (root / bad / "metrics.jsonl").chmod(0)
    (root / "lost+found").mkdir(mode=0o700)
    give_up()
    rows = {row.name: row.damage for row in runs_table(root)}  # and the index cannot be written
    assert rows == {bad: f"{root / bad / 'metrics.jsonl'} cannot be read: Permission denied", whole: ""}
    os.seteuid(os.getuid())
    (root / bad).chmod(0)
    give_up()
    rows = {row.name: row.damage for row in runs_table(root)}
    assert rows == {bad: f"{root / bad / 'provenance.json'} cannot be read: Permission denied", whole: ""}
    with pytest.warns(UserWarning, match=f"run {bad} is skipped: .* cannot be read: Permission denied"):
        assert [run.name for run in find_runs(root)] == [whole]
    os.seteuid(os.getuid())
    root.chmod(0)
    give_up()
    for look in (runs_table, find_runs):
        with pytest.raises(ValueError, match=f"the runs folder {root} cannot be read: Permission denied"):
            look(root)


def test_a_run_that_can_only_be_read_is_found_by_its_configuration(made, unprivileged):
    folder, give_up = unprivileged
    root = Path(shutil.copytree(made, folder / "runs"))
    config = load_config("demo/plain")
    for path in [root, *root.iterdir()]:
        path.chmod(0o555)
    give_up()
    assert prepare_run(config, root).config == config
    with pytest.raises(PermissionError, match=str(root)):
        prepare_run(load_config("demo/plain", ["training.seed=9"]), root)


def test_what_a_disk_refuses_names_the_file(root):
    run = find_runs(root)[0]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # as a full disk: the write fails, not the opening
    try:
        for write in (
            lambda: set_notes(run, tags=["much longer than that"]),
            lambda: run.write_status("stopped", 5),
            lambda: append_jsonl(run.folder / "metrics.jsonl", {"step": 6}),
        ):
            with pytest.raises(OSError, match=str(run.folder)) as caught:
                write()
            assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run.status["steps"] == 700
