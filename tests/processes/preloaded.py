"""Python processes that begin with PyTorch imported, as forks of one that has done nothing but import.

Tests start a hundred processes, each of which would import PyTorch and its compiler for four seconds. `install` makes
`subprocess` ask the template, a process of this file, for those that run one of `MODULES`. What it makes is a child of
the process that asked, as any other: it has the files, folder, environment, signals and session that were given and can
be waited for and killed. In it `subprocess` asks too, a template of its own.

A process starts in the ordinary way if it runs anything else, if its environment could have changed what the template
imported, or if that has `WORKBENCH_TEST_FRESH`.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import io
import multiprocessing.util
import os
import pickle
import random
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

FRESH = "WORKBENCH_TEST_FRESH"
MODULES = ("workbench", "ipykernel_launcher", "torch.distributed.run")
CODES = ("from workbench.", "from multiprocessing.spawn ")  # how the code of workers begins, which is given by -c
# What most processes import. Without matplotlib, which chooses how to draw when it is imported, and without ipywidgets,
# which then says to the kernel that it is there.
IMPORTS = (
    *("torch", "torch._dynamo", "torch.distributed.run", "accelerate", "papermill", "ipykernel.ipkernel"),
    *("workbench.__main__", "workbench.training.loop", "workbench.evaluation.suite", "workbench.features.extract"),
)
# Variables that are read as Python starts or a package is imported, but for those that are read later or replaced here.
EARLY = ("PYTHON", "LD_", "LC_", "LANG", "HOME", "XDG_", "TZ", "TORCH", "PYTORCH", "OMP_", "GOMP_", "MKL_", "OPENBLAS_")
EARLY += ("KMP_", "MALLOC_", "CUDA_", "HF_", "NUMBA_", "JAXTYPING_", "ACCELERATE_")
SET_BY_PYTORCH = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR")
LATE = ("PYTHONPATH", "PYTHONUNBUFFERED", "TORCHELASTIC_", "TORCH_ELASTIC_", "TORCH_NCCL_", *SET_BY_PYTORCH)
# As `workbench` sets them before it imports PyTorch.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "30000"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # a fork has no other
REPOSITORY = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
HIGH = 200  # a process has no files with such numbers
SET_CHILD_SUBREAPER = 36  # of Linux's prctl: orphans below become children of this process

_ordinarily = subprocess.Popen._execute_child
_spawn_ordinarily = multiprocessing.util.spawnv_passfds
_lock = threading.Lock()
_template: socket.socket | None = None  # how it is asked
_environment: dict[str, str] = {}  # the template's
_lost = False  # the template does not answer any more


def install() -> None:
    """Have `subprocess` and `multiprocessing` ask the template, which is started when it is first needed.

    Its environment is that of now, as a test may need it first that has changed the environment for itself. Nothing is
    changed where `Popen` has another such step, which is private to Python.
    """
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    _environment.update({**os.environ, **WAITING, **ONE_THREAD, "PYTHONPATH": path})
    steps = [inspect.signature(step).parameters.keys() for step in (_ordinarily, _execute_child)]
    if sys.platform == "linux" and steps[0] == steps[1]:
        subprocess.Popen._execute_child = _execute_child
        multiprocessing.util.spawnv_passfds = _spawn


def start() -> None:
    """Start the template early, as it imports for some seconds; does nothing if it runs, or if it is not used here."""
    global _template
    if subprocess.Popen._execute_child is not _execute_child:
        return
    with _lock:
        _template = _template or _start_template()


def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                   p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
                   start_new_session, process_group):  # fmt: skip
    """`Popen`'s own step between opening the pipes and closing the child's ends of them."""
    pid = None
    special = executable or shell or gid or gids or uid or not close_fds or not restore_signals
    if not special and umask < 0 and process_group in (None, -1) and not isinstance(args, str | bytes | os.PathLike):
        handles = [number if end == -1 else end for number, end in enumerate((p2cread, c2pwrite, errwrite))]
        pid = _ask(args, handles, pass_fds, cwd, env, bool(start_new_session), preexec_fn)
    if pid is not None:
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
    else:
        _ordinarily(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags,
                    shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid,
                    umask, start_new_session, process_group)  # fmt: skip


def _spawn(path, args, passfds) -> int:
    """What `multiprocessing` starts its processes with; returns the number of the process."""
    if pid := _ask([path, *args[1:]], [0, 1, 2], passfds):
        return pid
    return _spawn_ordinarily(path, args, passfds)


def _task(arguments: list[str]) -> list[str]:
    """The arguments from -m, -c or the script on, if the template can do what they ask for, or else none."""
    if arguments[:1] != [sys.executable]:
        return []
    task = arguments[2:] if arguments[1:2] == ["-u"] else arguments[1:]
    kind, what = (*task, "", "")[:2]
    if kind == "-m" and any(what == name or what.startswith(f"{name}.") for name in MODULES):
        return task
    return task if kind == "-c" and what.startswith(CODES) or kind.endswith(".py") and kind != __file__ else []


def _is_possible(order: dict) -> bool:
    environment = order["environment"]
    if not _task(order["arguments"]) or FRESH in environment or not Path(order["folder"]).is_dir():
        return False
    return early(environment) == early(_environment)


def early(environment: dict[str, str]) -> dict[str, str]:
    """What decides how modules are imported."""
    return WAITING | {k: v for k, v in environment.items() if k.startswith(EARLY) and not k.startswith(LATE)}


def _paths(environment: dict[str, str]) -> set[str]:
    return set(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))


def _ask(args, handles, pass_fds, cwd=None, env=None, session=False, before=None) -> int | None:
    """The number of the process that the template has made; None if it cannot."""
    global _template, _lost
    order = {
        "arguments": [*map(os.fsdecode, args)],
        "environment": {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if env is None else env).items()},
        "folder": os.path.abspath(os.fsdecode(cwd or ".")),
        "files": [0, 1, 2, *pass_fds],
        "session": session,
        "ignored": [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN],
        "before": before,
    }
    if not _is_possible(order):
        return None
    try:
        data = pickle.dumps(order)
    except (pickle.PicklingError, AttributeError, TypeError):  # what is to be done before it begins is a local function
        return None
    with _lock:
        if _lost:
            return None
        try:
            _template = _template or _start_template()
            _adopt(True)
            socket.send_fds(_template, [struct.pack("q", len(data))], [*handles, *pass_fds])
            _template.sendall(data)
            (pid,) = struct.unpack("q", _read(_template, 8))
        except (OSError, EOFError):
            _lost = True
            return None
        finally:
            _adopt(False)
    return pid or None


def _adopt(orphans: bool) -> None:
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0)


def _start_template() -> socket.socket:
    here, there = socket.socketpair()
    handle, null = there.fileno(), subprocess.DEVNULL
    command = [sys.executable, __file__, str(handle)]
    subprocess.Popen(command, stdin=null, stdout=null, env=_environment, pass_fds=(handle,))
    there.close()
    return here


def _read(channel: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = channel.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _serve(channel: socket.socket) -> dict:
    """Make processes until the channel is closed; returns in each of them, with its order."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a whole group of processes gets them
    while True:
        head, handles, _, _ = socket.recv_fds(channel, 8, HIGH)
        if not head:
            os._exit(0)
        (length,) = struct.unpack("q", head + _read(channel, 8 - len(head)))
        order = pickle.loads(_read(channel, length))
        if _imports_otherwise(order):
            channel.sendall(struct.pack("q", 0))
            for handle in handles:
                os.close(handle)
            continue
        # The process is an orphan as soon as the one between has ended, and so becomes a child of the one that asks.
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            parent = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == parent:
                time.sleep(0.0005)
            order["answer"], *order["handles"] = (fcntl.fcntl(one, fcntl.F_DUPFD, HIGH) for one in (writing, *handles))
            channel.detach()
            return order
        for handle in (writing, *handles):
            os.close(handle)
        os.waitpid(between, 0)
        answer = os.read(reading, 8)  # when the process has its session, which is when `Popen` returns
        os.close(reading)
        channel.sendall(answer or struct.pack("q", 0))


def _imports_otherwise(order: dict) -> bool:
    """Whether folders that the template did not look in have modules with the names of those that it has imported."""
    names = {name.partition(".")[0] for name in sys.modules} | {"sitecustomize", "usercustomize"}
    known = {str(REPOSITORY), *sys.path}
    folders = map(Path, {_first(order), *_paths(order["environment"])} - known)
    try:
        return any(file.name.partition(".")[0] in names for path in folders if path.is_dir() for file in path.iterdir())
    except OSError:
        return True


def _first(order: dict) -> str:
    """The folder in which Python looks for modules first."""
    script = _task(order["arguments"])[0]
    return os.path.dirname(os.path.join(order["folder"], script)) if script.endswith(".py") else order["folder"]


def _alone(channel: socket.socket) -> socket.socket:
    """Close all files but the channel: who reads from a process would wait for its template too."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.dup2(channel.detach(), 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return socket.socket(fileno=3)


def _begin(order: dict, channel: socket.socket) -> list[str]:
    """Turn this process into the one that was ordered; returns what it is to run."""
    global _template
    handle = fcntl.fcntl(channel.detach(), fcntl.F_DUPFD_CLOEXEC, HIGH)
    _template = socket.socket(fileno=handle)
    for number, given in zip(order["files"], order["handles"], strict=True):
        os.dup2(given, number)
    kept = sorted({*order["files"], order["answer"], handle})
    for last, following in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(last + 1, following)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in order["ignored"] else signal.SIG_DFL)
    if signal.SIGINT not in order["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    environment, task = order["environment"], _task(order["arguments"])
    own = _paths(dict(os.environ)) | {str(Path(__file__).parent)}
    paths = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [_first(order), *paths, *(path for path in sys.path if path not in own)]
    sys.orig_argv, sys.argv = order["arguments"], task if task[0].endswith(".py") else [task[0], *task[2:]]
    environment = {name: os.environ[name] for name in SET_BY_PYTORCH if name in os.environ} | environment
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(order["folder"])
    unbuffered = bool(environment.get("PYTHONUNBUFFERED")) or "-u" in order["arguments"][:2]
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _output(1, "strict", os.isatty(1), unbuffered)
    sys.stderr = sys.__stderr__ = _output(2, "backslashreplace", True, unbuffered)
    tempfile.tempdir = None  # found in the template's environment
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.modules["preloaded"] = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    if order["before"]:
        order["before"]()
    os.write(order["answer"], struct.pack("q", os.getpid()))
    os.close(order["answer"])
    return task


def _output(number: int, errors: str, by_line: bool, unbuffered: bool) -> io.TextIOWrapper:
    file = open(number, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(file, errors=errors, line_buffering=by_line, write_through=unbuffered)


def main() -> None:
    """The template, and each process that it makes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    install()
    importlib.import_module("workbench.reporting.papermill").skip_grammars()
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # looking through what was imported would copy the pages that all share
    while True:
        order = _serve(channel)
        if order["session"]:
            os.setsid()
        here, there = socket.socketpair()
        if os.fork():
            there.close()
            break
        here.close()
        channel = _alone(there)  # the template of this process
    _end(_begin(order, here))


def _run(task: list[str]) -> None:
    """What Python does with the arguments that begin with -m, -c or a script."""
    kind, what = (*task, "")[:2]
    if kind == "-m":
        is_package = hasattr(sys.modules.get(what), "__path__")
        sys.modules.pop(f"{what}.__main__" if is_package else what, None)  # it is imported under the name `__main__`
        runpy._run_module_as_main(what)
    elif kind == "-c":
        exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.modules["__main__"].__file__ = kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), vars(sys.modules["__main__"]))


def _end(task: list[str]) -> None:
    """Run it, and end as Python does, but leave its modules to Linux: to take them apart would copy all their pages."""
    code = 0
    try:
        _run(task)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and code is not end.code:
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        raise  # with which Python ends as if by the signal
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code & 255)


if __name__ == "__main__":
    main()
