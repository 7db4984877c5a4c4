"""What `workbench evaluate`, `compare` and `encode` refuse: in one sentence, and before anything heavy is imported."""

import subprocess
import sys

import numpy as np
import pytest

from workbench.__main__ import main
from workbench.config import load_config
from workbench.runs.store import prepare_run
from workbench.runs.zoo import zoo


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    np.savez(tmp_path / "s.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    return tmp_path


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("workbench: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--samples", "s.npz", "--reference", ""), "empty"),
        (("run", "--reference", ""), "empty"),
        (("--samples", "s.npz"), "--samples needs --reference"),
        (("--samples", "none.npz", "--reference", "s.npz"), "none.npz"),
        (("--samples", "s.npz", "--reference", "none.npz"), "none.npz cannot be read: No such file or directory"),
        (("--samples", "/dev/zero", "--reference", "s.npz"), "/dev/zero is not a regular file"),
        (("--samples", ".", "--reference", "s.npz"), "is a folder; allowed are .npz and .npy files"),
        (("run", "--samples", "s.npz", "--reference", "s.npz"), "give a run or --samples, not both; got 'demo-plain-"),
        (("data.limit=3", "--samples", "s.npz", "--reference", "s.npz"), "data.limit=3 has no effect on a reference"),
        (("--samples", "s.npz", "--reference", "s.npz", "--step", "3"), "--step is for runs"),
        (("--samples", "s.npz", "--reference", "s.npz", "--processes", "2"), "--processes is for runs"),
        (("--samples", "s.npz", "--reference", "s.npz", "--force"), "--force is for runs"),
        (("--samples", "s.npz", "--reference", "s.npz", "--weak", "3"), "--weak is for runs"),
        (("run", "--processes", "0"), "processes must be"),
        (("run", "--detector", "clf64", "clf65"), "detector 'clf65' is not known; did you mean 'clf64'"),
        (("run", "--report", "."), "is a folder; give a JSON file"),
        ((), "give a run, or --samples FILE.npz"),
        (("nope",), "nope"),
    ],
)
def test_evaluate_refuses(root, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(root)
    run = prepare_run(load_config("demo/plain"), root / "runs")
    arguments = [run.name if argument == "run" else argument for argument in arguments]
    assert sentence in refused(capsys, "evaluate", *arguments)


def test_a_step_or_an_option_that_there_is_not(root, capsys):
    run = prepare_run(load_config("demo/plain"), root / "runs")
    assert "has no checkpoint; it has: none" in refused(capsys, "evaluate", run.name)
    assert "has no checkpoint of step 7; it has: none" in refused(capsys, "evaluate", run.name, "--step", "7")
    assert "did you mean 'steps'?" in refused(capsys, "evaluate", run.name, "stepz=3")


def test_a_weak_model_that_does_nothing_or_is_not_there(root, capsys):
    run = zoo("plain", root / "runs")
    assert "--weak has no effect without guidance; add guidance_scale=2" in refused(
        capsys, "evaluate", run.name, "--weak", "1200"
    )
    guided = ("evaluate", run.name, "guidance_scale=2", "--weak")
    assert "weak is 'gone', and" in refused(capsys, *guided, "gone")
    assert "has no checkpoint of step 7; it has: 1200, 2400" in refused(capsys, *guided, "7")
    assert "the same weights as the run itself" in refused(capsys, *guided, "6000")


def test_what_is_said_of_all_rows_is_said_once(root, capsys):
    for name in ("plain", "guided"):
        zoo(name, root / "runs")
    main(["compare", "zoo-plain", "zoo-guided", "--metric", "fd-clf64", "recall-clf64"])
    said = capsys.readouterr().out
    assert said.count("One pair allows no interval and no test") == 1 and said.count("By seed:") == 2
    main(["compare", "zoo-plain", "zoo-guided", "--metric", "fd-clf64"])
    assert "with seed 0. One pair allows no interval and no test" in capsys.readouterr().out


def test_refusals_wait_for_no_heavy_import(root):
    code = "import sys; from workbench.__main__ import main\n"
    code += "try: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "evaluate", "nope"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.strip() == "False"


def test_a_device_that_is_not_there_is_refused_also_where_nothing_is_left_to_encode(root, capsys):
    encode = ("encode", "demo/plain", "data.name=digits", "data.source=auto", "data.limit=20", "vae.name=identity")
    main([*encode, "--device", "cpu"])
    capsys.readouterr()
    for device in ("abc", "cuda:99", "cpu:7"):
        assert f"--device '{device}' " in refused(capsys, *encode, "--device", device)
