import pytest


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A tiny trained run of four steps."""
    from workbench.config import load_config
    from workbench.runs.store import prepare_run
    from workbench.training.loop import fit

    root = tmp_path_factory.mktemp("runs")
    options = ("data.limit=200", "training.steps=4", "training.batch=8", "sampling.steps=2", "sampling.count=30")
    config = load_config("demo/plain", options)
    list(fit(config, root))
    return prepare_run(config, root)
