"""JupyterLab as `workbench lab` starts it: who may enter, and what it asks for."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

from workbench.__main__ import main
from workbench.cli.lab import Copied, copy_notebooks, free_port, lab_arguments, lab_environment
from workbench.shipped import shipped


def refused(lab, path: str, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        lab.get(path, **headers)
    return error.value.code


def test_a_notebook_that_is_there_is_never_overwritten(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "new" / "folder"
    (source / "paper").mkdir(parents=True)
    (source / "runs").mkdir()
    for name in ("a", "b", "c", "paper/row", "runs/theirs"):
        (source / f"{name}.ipynb").write_text(name)
    assert copy_notebooks(source, folder) == Copied(("a.ipynb", "b.ipynb", "c.ipynb", "paper/row.ipynb"), ())
    (folder / "b.ipynb").write_text("mine")
    (folder / "c.ipynb").unlink()
    again = copy_notebooks(source, folder)
    assert (again.new, again.changed) == (("c.ipynb",), ("b.ipynb",))
    assert (folder / "b.ipynb").read_text() == "mine"
    assert copy_notebooks(source, source) == Copied((), ())


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write the notebooks into .*file"):
        copy_notebooks(shipped("notebooks"), tmp_path / "file")


def test_ports():
    assert free_port(0) > 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} cannot be used .*choose another"):
            free_port(port)
    with pytest.raises(ValueError, match="allowed are 1 to 65535"):
        free_port(70_000)


def test_the_token_is_in_the_environment_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_RUNS", "somewhere")
    environment = lab_environment({"JUPYTER_CONFIG_PATH": "theirs", "PATH": "x"}, "secret")
    ours, theirs = environment["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert theirs == "theirs" and (Path(ours) / "labconfig" / "default_setting_overrides.json").is_file()
    assert environment["JUPYTER_TOKEN"] == "secret" and environment["PATH"] == "x"
    assert environment["WORKBENCH_RUNS"] == str(tmp_path / "somewhere")
    assert not any("secret" in argument for argument in lab_arguments(tmp_path, 8888, True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("lab", "--folder", "nowhere", "--no-browser"), "there is no folder nowhere"),
        (("lab", "--port", "-1", "--no-browser"), "--port must be at least 0"),
        (("page", "demo-plain", "lesson.pdf"), "the name must end in .html"),
        (("page", "demo-plain", "nowhere/lesson.html"), "there is no folder nowhere"),
        (("page", "nobody", "lesson.html"), "is not a run folder or the name of a run"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, environment, tmp_path):
    command = [sys.executable, "-m", "workbench", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert sentence in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("view", ["maps", "samples"])
def test_a_page_of_a_run(view, environment, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", environment["WORKBENCH_RUNS"])
    monkeypatch.chdir(tmp_path)
    main(["page", "demo-plain", "lesson.html", "--view", view, "--images", "3"])
    assert "MB, works offline" in capsys.readouterr().out
    assert "default-src 'none'" in (tmp_path / "lesson.html").read_text()


@pytest.mark.slow
def test_only_who_has_the_token_enters_whatever_the_users_own_settings_say(lab):
    assert refused(lab, "/api/contents") == refused(lab, "/api/contents", Authorization="token ") == 403
    # A page elsewhere whose name was made to lead here.
    assert refused(lab, "/api/contents", Authorization=f"token {lab.token}", Host="example.org") == 403
    with lab.get("/api/contents", Authorization=f"token {lab.token}") as answer:
        names = [one["name"] for one in json.load(answer)["content"]]
    assert sorted(names) == sorted(["paper", *(path.name for path in shipped("notebooks").glob("*.ipynb"))])
    assert len(lab.token) >= 40 and lab.token not in Path(f"/proc/{lab.process.pid}/cmdline").read_text()
    port = int(lab.address.rpartition(":")[2])
    with socket.socket() as other:  # every address of the machine but this one is free
        other.bind(("127.0.0.2", port))


@pytest.mark.slow
def test_it_says_what_it_copied_and_what_it_kept(lab):
    said = "".join(lab.said)
    assert "copied into workbench-notebooks/: 00_tour.ipynb" in said
    assert "not updated, because they were edited: 03_guidance.ipynb" in said


@pytest.mark.slow
def test_news_and_updates_are_off(lab):
    path = "/lab/api/settings/@jupyterlab/apputils-extension:notification"
    with lab.get(path, Authorization=f"token {lab.token}") as answer:
        found = json.load(answer)["schema"]["properties"]
    assert (found["fetchNews"]["default"], found["checkForUpdates"]["default"]) == ("false", False)
