"""What commands print of text that users wrote: as it is, and nothing that a terminal obeys."""

import shutil
import warnings

import pytest
import torch

import workbench.__main__
from workbench.cli.bars import bars
from workbench.cli.terminal import Console, on_one_line, shown, warnings_as_sentences
from workbench.config import load_config
from workbench.runs.checkpoints import FellBack, save_checkpoint
from workbench.runs.shelf import set_notes
from workbench.runs.store import prepare_run

# Markup that rich would take as closing, as a style, as a link and as a picture; and what turns or moves text.
MARKUP = ("[/b]", "[red]x", "[link=file:///etc/passwd]y[/link]", "[/]", "\\[b]", ":smile:", "[@click=f]z")
OBEYED = ("\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "a\rb", "a\u202eb", "a\u2028b", "\ud83d", "\x00", "a\nb", "a\tb")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in this process: its exit code, and what it printed and complained."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            workbench.__main__.main(list(arguments))
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert not set(out + err) & set("\x1b\x9b\x07\r\x00\u202e\u2028\ud83d")
        return code, out, err

    return run


@pytest.fixture
def run(tmp_path):
    run = prepare_run(load_config("demo/plain", [f"name='{MARKUP[1]}{MARKUP[5]}'"]), tmp_path / "runs")
    run.append("metrics.jsonl", {"step": 5, "loss": 0.5, "seconds": 3.0, "[/b]": 1.0})
    run.append("results.jsonl", {"metric": "[/x]", "value": 1.0})
    (run.folder / "log.txt").write_text("[/b] \x1b[2K\rbar\n")
    run.write_status("failed", 5, steps=700, error="[/b] of \x1b[31m")
    return run


def test_text_is_escaped_where_a_terminal_would_obey():
    for text in MARKUP:
        assert shown(text) == on_one_line(text) == text
    assert [on_one_line(text) for text in OBEYED[:4]] == ["\\x1b[31m", "\\x1b]0;title\\x07", "\\x9b2J", "a\\rb"]
    assert [on_one_line(text) for text in OBEYED[4:]] == [
        "a\\u202eb", "a\\u2028b", "\\ud83d", "\\x00", "a\\nb", "a\\tb",
    ]  # fmt: skip
    assert shown("a\nb\tc") == "a\nb\tc" and shown("Zoë 数 👩\u200d🔬 ⇒") == "Zoë 数 👩\u200d🔬 ⇒"


def test_tags_and_filters_are_printed_as_they_are(command, run):
    tags = [*MARKUP, *OBEYED[:-4], *OBEYED[-2:]]  # a file has no half a character and no null
    set_notes(run, tags=tags, notes="[/n]")
    code, out, _ = command("runs")
    assert code == 0 and run.name in out.replace("\n", "")
    line = next(line for line in out.splitlines() if "failed" in line)
    assert "[/b]" in out and "\\x1b[31m" in out and ":smile:" in out and "a\\nb" in out and line
    for text in ("[/b]", "[/n]", "\\[b]"):
        assert command("runs", "--filter", text)[1].count("failed") == 1
        assert command("runs", "--filter", f"{text}nothing")[1].strip().endswith(f"with {text + 'nothing'!r}")


def test_names_paths_and_errors_are_printed_as_they_are(command, run, tmp_path):
    code, out, _ = command("watch", run.name, "--once")
    assert code == 0 and f"{run.name} - failed" in out and "[/b] of \\x1b[31m" in out and "[/x] 1" in out
    assert "[/b] \\x1b[2K" in out and "bar" in out
    assert command("note", run.name, "--tags", "[/b]")[0] == 0
    assert command("trash", run.name) == (0, f"moved to {tmp_path}/runs/.trash/{run.name}\n", "")
    assert command("restore") == (0, f"{run.name}\n", "")
    assert command("restore", run.name) == (0, f"{run.folder}\n", "")
    code, _, err = command("trash", "[/b]\x1b[31m")
    assert code == 2 and err.startswith("workbench: '[/b]\\x1b[31m' is not a run folder")
    assert command("runs", "--sort", "[/b]")[0] == 2


def test_a_name_with_a_line_feed_is_one_row(command, tmp_path):
    made = prepare_run(load_config("demo/plain"), tmp_path / "runs")
    shutil.move(made.folder, made.folder.with_name("a\nb"))
    code, out, _ = command("runs")
    assert code == 0 and "a\\nb" in out and len(out.strip().splitlines()) == 3


def test_bars_and_waiting_take_any_text(capsys):
    for console in (Console(), Console(force_terminal=True, width=100, color_system=None)):
        with bars(console) as update:
            for text in (*MARKUP, *OBEYED):
                update(text, 1, 2, text)
        with console.status("[/b]"):
            pass
        console.print("[/b]", ":smile:")
    printed = capsys.readouterr().out
    assert "[/b]: 1/2 [/b]" in printed and "[/b] :smile:" in printed


def test_an_older_checkpoint_ends_with_code_3(command, tmp_path):
    run = prepare_run(load_config("demo/plain"), tmp_path / "runs")
    for step in (21, 24):
        save_checkpoint(run.folder / "checkpoints", step, {"ema": {"w": torch.ones(2)}}, {})
    run.write_status("finished", 24, steps=24)
    (run.folder / "checkpoints" / "step-00000024" / "ema.safetensors").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.runs.imported.export_run", lambda run, path, **how: f"{path} of {how['step']}")
        code, out, err = command("export", run.name, "x.safetensors", "--family", "sit")
        assert code == 3 and out == f"{run.name}, step 21, as sit: x.safetensors of 21\n"
        assert err.count("the checkpoint of step 21 is used instead of the newest") == 1
        assert command("export", run.name, "x.safetensors", "--family", "sit", "--step", "21")[0] == 0
    code, _, err = command("export", run.name, "x.safetensors", "--family", "nothing")
    assert code == 2 and "family 'nothing' is not known" in err


def test_warnings_of_others_stay_theirs(capsys):
    with pytest.warns(FutureWarning), warnings_as_sentences() as came:
        warnings.warn("theirs", FutureWarning, stacklevel=1)
        for _ in range(2):
            warnings.warn("an older one", FellBack, stacklevel=1)
    assert came >= {FellBack} and capsys.readouterr().err == "workbench: an older one\n"
