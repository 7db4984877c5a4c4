"""A process that is forked for a test is as one that is started, but for what is imported."""

import json
import os
import signal
import subprocess
import sys

import pytest
from preloaded import FRESH, ONE_THREAD, SET_BY_PYTORCH

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
LEFT_OUT = (FRESH, "LC_CTYPE", *SET_BY_PYTORCH)  # the second one is set as Python starts
SAYS = """from workbench.words import duration
import json, os, random, signal, sys
files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
state = {
    "arguments": sys.argv, "folder": os.getcwd(), "first path": os.path.abspath(sys.path[0]), "main": __name__,
    "read": sys.stdin.read(),
    "environment": {k: v for k, v in os.environ.items() if k not in LEFT_OUT},
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    "own session": os.getsid(0) == os.getpid(), "parent": os.getppid(),
    "files": [number for number in files if number < 100],
}
print(json.dumps({"state": state, "imported": "torch" in sys.modules, "random": random.random()}))
print("an error", file=sys.stderr)
sys.exit(3)
"""


def said(fresh: bool, folder, **options) -> tuple:
    code = SAYS.replace("LEFT_OUT", repr(LEFT_OUT))
    environment = {**os.environ, **ONE_THREAD, "GIVEN": "so", **({FRESH: "1"} if fresh else {})}
    done = subprocess.run(
        [sys.executable, "-c", code, "an argument"],
        env=environment, cwd=folder, input="some text", capture_output=True, text=True, **options,
    )  # fmt: skip
    return json.loads(done.stdout), done.returncode, done.stderr


@pytest.mark.parametrize("options", [{}, {"start_new_session": True}])
def test_it_is_as_a_process_that_is_started(tmp_path, options):
    (started, *ends), (forked, *same) = (said(fresh, tmp_path, **options) for fresh in (True, False))
    assert forked["state"] == started["state"] and same == ends == [3, "an error\n"]
    assert forked["state"]["environment"]["GIVEN"] == "so" and forked["state"]["parent"] == os.getpid()
    assert (started["imported"], forked["imported"]) == (False, True)  # else nothing is gained
    assert said(False, tmp_path)[0]["random"] != forked["random"]


@pytest.fixture
def not_ignored():
    """Ctrl-C is ignored in what a shell starts in the background, and in the processes that this starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_is_killed_and_waited_for(number, not_ignored):
    code = "from workbench.words import duration\nimport time\nprint(1, flush=True)\ntime.sleep(60)"
    options = {"env": {**os.environ, **ONE_THREAD}, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", code], **options)
    assert process.stdout.readline() == b"1\n"
    process.send_signal(number)
    assert process.wait(timeout=20) == -number
    process.stdout.close()
