"""What the tests of faults share: the backends of the contract suite, and how long to go on."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from backends import BACKENDS, Backend

NOBODY = 65534


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
def as_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run as a user without special rights, where that can be done; with root's rights no mode hinders."""
    if os.geteuid() != 0:
        yield
        return
    # The folders of pytest are root's alone; whoever runs the test must be able to walk through them.
    base = tmp_path_factory.getbasetemp()
    opened = [folder for folder in (base, *base.parents) if not folder.stat().st_mode & 0o001]
    modes = {folder: folder.stat().st_mode for folder in opened}
    for folder in opened:
        folder.chmod(modes[folder] | 0o001)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        for folder in opened:
            folder.chmod(modes[folder])
