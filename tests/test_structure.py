"""Who may import whom: each room sees only the floors below its own."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import workbench

ROOT = Path(workbench.__file__).parent
FLOORS = [
    {"diffusion"},
    {"backbones", "objectives"},
    {"runs", "data"},
    {"training", "features", "evaluation"},
    {"lab", "reporting"},
    {"commands"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
GROUND = {"arrays", "config", "files", "plugins", "shipped"}


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add("relative")
        elif isinstance(node, ast.ImportFrom) and node.module == "workbench":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("workbench.")}
    return found


def allowed(room: str, other: str) -> bool:
    """Whether a file of ``room`` may import ``other``."""
    if room == other:
        return True
    if (room, other) == ("config", "plugins"):  # which imports nothing of the package but what it is asked for
        return True
    if room in GROUND or {room, other} == {"backbones", "objectives"}:
        return False
    if other in GROUND:
        return True
    return room in FLOOR and other in FLOOR and FLOOR[other] <= FLOOR[room]


def test_every_way_of_importing_is_seen(tmp_path):
    file = tmp_path / "file.py"
    lines = ["import workbench.a.b", "from workbench import c", "from workbench.d.e import f", "from . import g"]
    file.write_text("\n".join(lines) + "\ndef late():\n    from workbench.h import i\nimport torch\n")
    assert imports(file) == {"a", "c", "d", "relative", "h"}


def test_the_floors():
    assert allowed("reporting", "diffusion") and allowed("data", "runs") and allowed("diffusion", "files")
    for room, other in (
        ("diffusion", "backbones"),
        ("backbones", "objectives"),
        ("objectives", "backbones"),
        ("runs", "training"),
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


def test_every_room_is_on_a_floor():
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__", "presets"} <= FLOOR.keys() | GROUND


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
