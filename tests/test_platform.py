"""Where POSIX is missing, as on Windows, the package can still be imported and says what it needs.

Windows itself is not there to test on. These tests take away, in a process of their own, what Python
lacks there, after the standard library is loaded and before the package is.
"""

import subprocess
import sys
from pathlib import Path

import pytest

import omniq_executor

ROOT = Path(omniq_executor.__file__).parent
MODULES = sorted(
    ".".join([ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name not in ("dask.py", "ray.py")  # which need what extras bring
)

LIKE_WINDOWS = f"""
import sys
sys.path.insert(0, {str(ROOT.parent)!r})

# What Python and the libraries do on Windows is not tested here: they have branches of their own for it.
import asyncio, concurrent.futures.process, ctypes, logging.handlers, multiprocessing.connection
import multiprocessing.forkserver, multiprocessing.popen_spawn_posix, multiprocessing.reduction, multiprocessing.spawn
import os, pathlib, platform, select, selectors, signal, shutil, socket, sqlite3, subprocess, tempfile, threading, time
import aiosqlite, click, click.testing, cloudpickle, filelock, psutil
import rich.console, rich.live, rich.progress, rich.table

MISSING = {{
    os: '''WNOHANG chown chroot fchdir fchmod fchown fork forkpty geteuid getegid getgid getgroups getloadavg getpgid
        getpgrp getpriority getresuid getsid getuid initgroups killpg lchown lockf major minor mkfifo mknod nice openpty
        O_NONBLOCK O_CLOEXEC O_DIRECTORY O_SYNC F_LOCK pidfd_open pipe2 posix_fallocate posix_spawn posix_spawnp pread
        preadv pwrite pwritev readv register_at_fork sched_getaffinity sched_setaffinity sched_yield sendfile
        set_blocking get_blocking setsid setuid statvfs sync sysconf uname wait wait3 wait4 waitid
        memfd_create eventfd tcgetpgrp ttyname writev''',
    signal: '''SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH
        alarm getitimer pause pidfd_send_signal pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigwait
        sigtimedwait sigwaitinfo''',
    select: "EPOLLIN POLLIN epoll poll kqueue devpoll",
    selectors: "DevpollSelector EpollSelector KqueueSelector PollSelector",
    socket: '''AF_UNIX recv_fds send_fds sethostname CMSG_LEN CMSG_SPACE SCM_RIGHTS MSG_DONTWAIT MSG_NOSIGNAL
        SO_REUSEPORT''',
    socket.socket: "recvmsg recvmsg_into sendmsg",
    time: "clock_gettime clock_gettime_ns clock_settime pthread_getcpuclockid tzset",
    multiprocessing.reduction: "recvfds sendfds DupFd",
}}
for owner, names in MISSING.items():
    for name in names.split():
        if name in vars(owner):
            delattr(owner, name)
for module in ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"):
    sys.modules[module] = None  # its import raises ImportError
sys.platform = "win32"
selectors.DefaultSelector = selectors.SelectSelector
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""


def run(code: str, timeout_s: float = 60) -> str:
    """What a fresh interpreter prints in which POSIX is missing."""
    command = [sys.executable, "-W", "error", "-c", LIKE_WINDOWS + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_what_is_taken_away_is_gone() -> None:
    code = """
assert not hasattr(os, "fork") and not hasattr(signal, "SIGKILL") and not hasattr(select, "poll")
try:
    import fcntl
except ImportError:
    print("gone")
"""
    assert run(code) == "gone\n"


@pytest.mark.once
def test_each_module_can_be_imported_by_itself_without_posix() -> None:
    assert len(MODULES) > 20
    code = f"""
import importlib, traceback
for name in {MODULES!r}:
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == "omniq_executor"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except BaseException:
        print(name, traceback.format_exc())
"""
    assert run(code) == ""


def test_every_public_name_is_there_without_posix() -> None:
    code = "import omniq_executor\nfor name in omniq_executor.__all__: getattr(omniq_executor, name)\nprint('all')"
    assert run(code) == "all\n"


def test_without_posix_workers_are_spawned_on_all_cpus_of_the_machine() -> None:
    code = """
from omniq_executor import executor
from omniq_executor.engines.local import start_method
print(start_method.default_context().get_start_method(), executor.usable_cpus() == os.cpu_count())
"""
    assert run(code) == "spawn True\n"


def test_the_command_line_can_say_what_it_does_without_posix() -> None:
    assert "Usage" in run("from omniq_executor.cli.main import main\nmain(['--help'], prog_name='omniq-executor')")
