"""What the tests of faults share: the backends of the contract suite, and how long to go on."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from backends import BACKENDS, Backend

NOBODY = 65534
TALLY = "what was done to the stores"


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str, str, str, int], None]:
    """Have the end of the run report what was done, to which store, how often, and what was lost."""
    return lambda *row: request.node.user_properties.append((TALLY, row))  # which comes from another process, too


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The rows as they stand in docs/reliability.md."""
    reports = [report for found in ("passed", "failed") for report in terminalreporter.getreports(found)]
    rows = [row for report in reports for name, row in report.user_properties if name == TALLY]
    if rows:
        terminalreporter.section(TALLY)
        for row in sorted(rows):
            terminalreporter.write_line("| " + " | ".join(map(str, row)) + " |")


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    return BACKENDS[request.param]


@pytest.fixture
def address(backend: Backend, tmp_path: Path) -> Path:
    """The address of a store that is not there yet."""
    return backend.address(tmp_path)


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The umask that the test is parametrised with."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Run as a user without special rights, where that can be done; with root's rights no mode hinders."""
    if os.geteuid() != 0:
        yield
        return
    # The folders of pytest are root's alone; whoever runs the test must be able to walk through them. They stay open:
    # a test in another process may be on its way through those that are above both.
    for folder in (tmp_path, *tmp_path.parents):
        if not (mode := folder.stat().st_mode) & 0o001:
            folder.chmod(mode | 0o001)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def home(as_nobody: None, tmp_path: Path) -> Path:
    """A private folder of the user that `as_nobody` runs the test as."""
    user, group = os.geteuid(), os.getegid()
    made = tmp_path / "home"
    os.seteuid(os.getuid())
    try:
        made.mkdir()
        made.chmod(0o700)
        os.chown(made, user, group)
    finally:
        os.seteuid(user)
    return made
