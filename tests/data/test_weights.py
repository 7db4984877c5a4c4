"""Weight files: fetched once and soon given up, read without running their code, refused by name."""

import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workbench.data import weights
from workbench.data.weights import hub_folder, read_statistics, read_tensors, weights_folder


class Stranger:
    """Something that only running foreign code could bring back."""


def test_weights_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_WEIGHTS", str(tmp_path))
    assert weights_folder() == tmp_path
    monkeypatch.delenv("WORKBENCH_WEIGHTS")
    assert weights_folder() == Path.home() / ".cache" / "workbench"


def test_tensors_of_every_container_are_the_same(tmp_path):
    tensors = {"a.b": torch.tensor([1.0, 2.5]), "c": torch.tensor(3)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    torch.save({"state_dict": {**tensors, "note": "n"}, "epoch": 3}, tmp_path / "x.ckpt")
    for file in sorted(tmp_path.iterdir()):
        found = read_tensors(file)
        assert {key: value.tolist() for key, value in found.items()} == {"a.b": [1.0, 2.5], "c": 3.0}
        assert {value.dtype for value in found.values()} == {torch.float32}


def test_what_holds_no_tensors_is_named(tmp_path):
    file = tmp_path / "x.pt"
    with pytest.raises(ValueError, match="x.pt does not exist"):
        read_tensors(file)
    for content in ([torch.ones(1)], {"steps": 3}, {"state_dict": 1}):
        torch.save(content, file)
        with pytest.raises(ValueError, match="x.pt has no dictionary of tensors"):
            read_tensors(file)
    torch.save({"a": torch.ones(1), "b": Stranger()}, file)
    with pytest.raises(ValueError, match=r"x.pt is damaged, or has more than plain tensors .*\(UnpicklingError\)"):
        read_tensors(file)


def test_an_error_without_words_is_named_too(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise EOFError

    monkeypatch.setattr(torch, "load", fail)
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x.pt is damaged, .* \(EOFError\)"):
        read_tensors(tmp_path / "x.pt")


def test_statistics_of_each_channel(tmp_path):
    file = tmp_path / "latents_stats.pt"
    torch.save({"mean": torch.arange(3.0).reshape(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, file)
    mean, std = read_statistics(file, 3)
    assert mean.tolist() == [0, 1, 2] and std.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"must have mean and std of 4 channels; it has .*\(1, 3, 1, 1\)"):
        read_statistics(file, 4)
    torch.save({"mean": torch.zeros(3), "std": torch.tensor([1.0, 0, 1])}, file)
    with pytest.raises(ValueError, match="deviations that are not positive"):
        read_statistics(file, 3)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose cache holds the files named in the list, and what was asked of it."""
    asked, cached = [], []

    def download(repository, file):
        asked.append(f"get {file}")
        return str(tmp_path / file)

    cache = lambda repository, file: str(tmp_path / file) if file in cached else None  # noqa: E731
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cache)
    look = lambda url, timeout: asked.append(f"look for {Path(url).name}")  # noqa: E731
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", look)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return cached, asked


def test_the_hub_is_asked_for_what_its_cache_lacks(hub, tmp_path):
    cached, asked = hub
    cached += ["a", "b"]
    assert hub_folder("some/model", ("a", "b")) == tmp_path and asked == []
    cached.remove("b")
    # All of them again, so that they are of one version.
    assert hub_folder("some/model", ("a", "b")) == tmp_path and asked == ["look for a", "look for b", "get a", "get b"]


def test_a_silent_hub_is_given_up_soon(hub, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(weights, "_HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *_: url)
        started = time.monotonic()
        with pytest.raises(Exception, match="(?i)time"):
            hub_folder("some/model", ("a",))
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor([1.0, float("nan"), float("inf")]), "b of .*x.pt has 2 non-finite numbers of 3"),
        (torch.tensor([1 + 2j]), "b of .*x.pt is not a dense tensor of real numbers: it is complex64"),
        (torch.eye(2).to_sparse(), "b of .*x.pt is not a dense tensor of real numbers: .*sparse_coo"),
        (torch.empty(2, device="meta"), "b of .*x.pt is not a dense tensor of real numbers: .* meta"),
    ],
    ids=["not finite", "complex", "sparse", "meta"],
)
def test_tensors_that_are_no_weights_are_named(tmp_path, value, said):
    torch.save({"a": torch.ones(1), "b": value}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=said):
        read_tensors(tmp_path / "x.pt")
