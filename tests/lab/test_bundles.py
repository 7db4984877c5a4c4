"""The scripts and styles that ship are those that esbuild makes of workbench/lab/js."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from workbench import lab

ROOT = Path(__file__).parents[2]
STATIC = Path(lab.__file__).parent / "static"
ESBUILD = ROOT / "node_modules" / ".bin" / "esbuild"


@pytest.mark.skipif(not (ESBUILD.exists() and shutil.which("node")), reason="needs Node and `npm ci`")
def test_the_committed_bundles_are_what_the_sources_make(tmp_path):
    command = shlex.split(json.loads((ROOT / "package.json").read_text())["scripts"]["build"])
    made = [str(ESBUILD), *(f"--outdir={tmp_path}" if "--outdir" in part else part for part in command[1:])]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True)
    names = sorted(path.name for path in STATIC.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (STATIC / name).read_bytes() == (tmp_path / name).read_bytes(), (
            f"run `npm run build`: {name} is out of date"
        )
