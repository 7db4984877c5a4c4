"""Who may import whom: each room sees only the floors below its own."""

import ast
import gc
import importlib
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

import workbench

ROOT = Path(workbench.__file__).parent
FLOORS = [
    {"diffusion"},
    {"backbones", "objectives"},
    {"runs", "data"},
    {"training", "features", "evaluation"},
    {"lab", "reporting"},
    {"cli"},
    {"__main__", "__init__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
GROUND = {"arrays", "config", "files", "imports", "plugins", "shipped", "words"}
# Plug-ins are found by name, in folders of these or by entry points. Nothing else may look upwards.
_NAMED = ("backbones", "objectives", "data", "evaluation", "lab", "reporting")
_GROUPS = ("datasets", "detectors", "scores", "views", "figures")
BY_NAME = {("plugins", other) for other in (*_NAMED, *_GROUPS)}


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports, wherever in the file, by a statement, by a string or as `wb.name`.

    A string that is a dotted path into the package counts, whatever it is used for: an argument of `import_module`, an
    entry of a lazy table, a module that another process runs.
    """
    tree, found = ast.parse(path.read_text()), set()
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    itself = {
        alias.asname or "workbench"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "workbench" or (alias.asname is None and alias.name.startswith("workbench."))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add("relative")
        elif isinstance(node, ast.ImportFrom) and node.module == "workbench":
            found |= {room_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("workbench.")}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in itself:
            found.add(room_of(node.attr))
        elif isinstance(node, ast.JoinedStr):
            # f"workbench.{name}" can be any room: the first constant part must say which.
            first = node.values[0] if node.values else None
            if isinstance(first, ast.Constant) and first.value == "workbench." and len(node.values) > 1:
                found.add("any")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found |= set(re.findall(r"^workbench\.(\w+)(?:\.\w+)*(?:\.|:\w+)?$", node.value))
    return found - {"__version__", "__file__", "__name__", "__path__"}


def room_of(name: str) -> str:
    """The room that has a name of the package `workbench`: of a public name the one it is lazily taken from."""
    return workbench._PUBLIC[name].split(".")[1] if name in workbench._PUBLIC else name


def allowed(room: str, other: str) -> bool:
    """Whether a file of ``room`` may import ``other``."""
    if room == other or (room, other) in BY_NAME:
        return True
    if room == "config" and other in ("plugins", "shipped"):  # they import nothing of the package, or what is asked for
        return True
    if room in GROUND or {room, other} == {"backbones", "objectives"}:
        return False
    if other in GROUND:
        return True
    return room in FLOOR and other in FLOOR and FLOOR[other] <= FLOOR[room]


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Rooms that import each other in a circle, the first again at the end; empty if there is none."""
    done = set()

    def walked(room: str, behind: list[str]) -> list[str]:
        if room in behind:
            return [*behind[behind.index(room) :], room]
        if room in done:
            return []
        for other in sorted(arrows.get(room, ())):
            if other != room and (found := walked(other, [*behind, room])):
                return found
        done.add(room)
        return []

    return next(filter(None, (walked(room, []) for room in sorted(arrows))), [])


def arrows() -> dict[str, set[str]]:
    """What each room imports, without what a configuration finds by name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        found.setdefault(room, set()).update(other for other in imports(path) if (room, other) not in BY_NAME)
    return found


def test_every_way_of_importing_is_seen(tmp_path):
    file = tmp_path / "file.py"
    lines = ["import workbench.a.b", "from workbench import c", "from workbench.d.e import f", "from . import g"]
    lines += ["import importlib, workbench as wb", "importlib.import_module('workbench.j.k')", "wb.l", "wb.fit"]
    lines += ["TABLE = {'name': 'workbench.m'}", "PLUGINS = ('workbench.n.o', 'X')", "print(workbench.p, wb.__file__)"]
    lines += [
        "f'workbench.q.{name}'",
        "run(['-m', 'workbench.r'])",
        "LOAD = 'workbench.u.v:name'",
        "'workbench.s'",
        "'see workbench.t'",
    ]
    lines += ["LOAD = 'workbench.u.v:name'"]
    file.write_text("\n".join(lines) + "\ndef late():\n    from workbench.h import i\nimport torch\n")
    assert imports(file) == {"a", "c", "d", "relative", "h", "j", "l", "training", "m", "n", "p", "q", "r", "u"}
    file.write_text("importlib.import_module(f'workbench.{name}')")
    assert imports(file) == {"any"} and not allowed("reporting", "any")


def test_the_lazy_table_is_seen():
    assert imports(ROOT / "__init__.py") >= {"config", "training", "lab", "evaluation", "reporting"}


def test_the_floors():
    assert allowed("reporting", "diffusion") and allowed("data", "runs") and allowed("diffusion", "files")
    for room, other in (
        ("diffusion", "backbones"),
        ("backbones", "objectives"),
        ("objectives", "backbones"),
        ("runs", "training"),
        ("runs", "lab"),
        ("evaluation", "reporting"),
        ("config", "files"),
        ("plugins", "config"),
        ("data", "relative"),
    ):
        assert not allowed(room, other), (room, other)


def test_imports_only_go_down():
    wrong = []
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imports(path):
            if not allowed(room, other):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong, wrong


def test_a_circle_is_found():
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"a", "b"}, "b": {"c"}, "c": {"d", "b"}}) == ["b", "c", "b"]
    assert circle({"features": {"evaluation"}, "evaluation": {"runs", "features"}}) != []


def test_rooms_of_one_floor_do_not_import_each_other_in_a_circle():
    assert not circle(arrows())


def test_no_package_can_be_called():
    for room in FLOOR.keys() - {"__main__", "__init__"}:
        assert not callable(importlib.import_module(f"workbench.{room}")), room


def test_every_room_is_on_a_floor():
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__pycache__", "presets"} <= FLOOR.keys() | GROUND


def seconds(code: str) -> float:
    """The shortest of three runs of ``code`` in a new interpreter."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        taken.append(time.perf_counter() - start)
    return min(taken)


def test_importing_the_package_is_quick():
    assert seconds("import workbench") - seconds("pass") < 0.3


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, workbench; sys.exit(', '.join({'torch', 'numpy', 'yaml'} & sys.modules.keys()) or 0)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_garbage_is_looked_for_again_after_an_import(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.imports._LARGE", {"large"})
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "large"
    package.mkdir()
    (package / "__init__.py").write_text("import gc\nfrom large import inner\nlooked = gc.isenabled()\n")
    (package / "inner.py").write_text("import gc\nlooked = gc.isenabled()\n")
    (package / "broken.py").write_text("1 / 0")
    for module in ("large", "large.inner"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    import large

    assert (large.looked, large.inner.looked, gc.isenabled()) == (False, False, True)
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("large.broken")
    with pytest.raises(ModuleNotFoundError, match="large.missing"):
        importlib.import_module("large.missing")
    assert gc.isenabled()
    gc.disable()  # by a user, who is left alone
    try:
        importlib.reload(large)
        assert not gc.isenabled()
    finally:
        gc.enable()
