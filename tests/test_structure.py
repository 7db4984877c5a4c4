"""Who may import whom: each room sees only the floors below its own."""

import ast
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
GROUND = {"config", "files"}


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "workbench":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("workbench.")}
    return found


def test_imports_only_go_down():
    wrong = []
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imports(path):
            if room in ("__init__", other) or other in GROUND - {room}:
                continue
            sideways = {room, other} == {"backbones", "objectives"}
            if room in GROUND or sideways or FLOOR[other] > FLOOR[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong, wrong


def test_every_room_is_on_a_floor():
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__", "presets"} <= FLOOR.keys() | GROUND
