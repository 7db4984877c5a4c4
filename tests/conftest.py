"""What every folder of tests shares: which tests run, checked shapes, threads, and a browser."""

import ast
import functools
import gc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import shutil
import socket
import sys
import traceback

import preloaded
import pytest

CHECKED_CALLS = 8  # of each function in each test: checks of every call take as long as the steps of a tiny training
_test = 0  # the number of the test that runs


def check_shapes(function):
    """The function, or the dataclass, with its annotations checked by jaxtyping and beartype in its first calls.

    The checks are compiled in the first call. jaxtyping's own import hook compiles those of every function that is
    imported, which takes several seconds before the first test.
    """
    if isinstance(function, type):
        if "__dataclass_fields__" in vars(function):
            function.__init__ = check_shapes(function.__init__)
        return function
    checked, test, calls = None, 0, 0
    torch = sys.modules.get("torch")
    compiling = torch.compiler.is_compiling if torch else bool  # the checks do not compile

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        nonlocal checked, test, calls
        if compiling():
            return function(*args, **kwargs)
        test, calls = _test, calls + 1 if test == _test else 1
        if calls > CHECKED_CALLS:
            return function(*args, **kwargs)
        if checked is None:
            from beartype import beartype
            from jaxtyping import jaxtyped

            checked = jaxtyped(function, typechecker=beartype)
        return checked(*args, **kwargs)

    return wrapped


class _CheckingLoader(importlib.machinery.SourceFileLoader):
    """Puts `check_shapes` around the functions and dataclasses of a module that names shapes."""

    def get_code(self, fullname):
        data = self.get_data(self.path)
        return self.source_to_code(data, self.path) if b"jaxtyping" in data else super().get_code(fullname)

    def source_to_code(self, data, path, *, _optimize=-1):
        if b"jaxtyping" not in data:  # called by `get_code` above, which caches the code for other processes
            return super().source_to_code(data, path, _optimize=_optimize)
        tree = ast.parse(data, path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                check = ast.copy_location(ast.Name("__check_shapes__", ast.Load()), node)
                # Innermost around a function, as other decorators may hide its annotations; outermost around a class.
                node.decorator_list.insert(0 if isinstance(node, ast.ClassDef) else len(node.decorator_list), check)
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module):
        module.__check_shapes__ = check_shapes
        super().exec_module(module)


class _CheckingFinder:
    """Loads the modules of the package with `_CheckingLoader`."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name.startswith("workbench.") else None
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _CheckingLoader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _CheckingFinder)
importlib.import_module("workbench.reporting.papermill").skip_grammars()  # of nbformat too
preloaded.install()


def _register_profiles() -> None:
    """Of generated examples the same few in every run by default; with --hypothesis-profile=long thousands of new."""
    from hypothesis import HealthCheck, settings

    common = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("short", max_examples=25, derandomize=True, database=None, **common)
    settings.register_profile("long", max_examples=2000, **common)
    settings.load_profile("short")


def pytest_pycollect_makemodule(module_path):
    # Not for every test: Hypothesis takes a second to import.
    if "hypothesis" not in sys.modules and b"hypothesis" in module_path.read_bytes():
        _register_profiles()


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked slow or browser too")


FAST = "not slow and not browser"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if config.getoption("--hypothesis-profile", None):
        _register_profiles()
    # Files, folders and tests that are named on the command line run whole.
    named = config.args_source is config.ArgsSource.ARGS
    if not (named or config.option.all or config.option.markexpr or config.option.keyword):
        config.option.markexpr = FAST  # which the processes of pytest-xdist get too


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("browser")
    # Files that take long come first, so that no process waits for another at the end.
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("browser")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish(session):
    gc.freeze()  # what was imported so far: looking through all of it again and again takes a twentieth of the time
    if any(item.get_closest_marker("slow") for item in session.items):
        preloaded.start()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process takes the whole of a file, or of a folder whose files share trained runs and a server."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            folder = file.rpartition("/")[0]
            return folder if folder.endswith(("tests/notebooks", "tests/reporting/paper")) else file

    return Scheduling(config, log)


def pytest_runtest_setup(item):
    global _test
    _test += 1
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")


def pytest_terminal_summary(terminalreporter, config):
    if config.option.markexpr == FAST:
        terminalreporter.write_line("Tests marked slow or browser were left out; `pytest --all` runs everything.")


# Processes of pytest-xdist side by side, each with as many threads as cores, would slow each other down.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The first one is Chromium without windows, which playwright drives by default too; a page takes a quarter less time.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
if CHROMIUM is not None:
    os.environ["CHROMIUM"] = CHROMIUM  # for the benchmarks
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
]


@pytest.fixture(scope="session")
def has_browser() -> bool:
    return CHROMIUM is not None and importlib.util.find_spec("playwright") is not None


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def _rank(number, count, port, results, work):
    import torch
    from accelerate.state import AcceleratorState

    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)  # the threads of the parent are not in this process
    AcceleratorState._reset_state(True)
    try:
        results.put((number, work(number), None))
    except BaseException:
        results.put((number, None, traceback.format_exc()))
    results.close()
    results.join_thread()
    os._exit(0)  # as Python is torn down, gloo's threads can abort the process


@pytest.fixture
def one_thread():
    """One thread for PyTorch, as in the processes that a test starts: another number sums in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_ranks():
    """Call a function with its rank in each of two processes, as torchrun would; returns what they returned."""
    fork = multiprocessing.get_context("fork")  # children that do not import torch again

    def run(work, count=2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results = fork.Queue()
        processes = [fork.Process(target=_rank, args=(k, count, port, results, work)) for k in range(count)]
        for process in processes:
            process.start()
        try:
            found = sorted((results.get(timeout=120) for _ in processes), key=lambda entry: entry[0])
        finally:
            for process in processes:
                process.kill()
                process.join()
        errors = [error for _, _, error in found if error]
        assert not errors, errors[0]
        return [value for _, value, _ in found]

    return run
