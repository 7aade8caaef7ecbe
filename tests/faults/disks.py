"""Small disks to fill, and disks whose power can be cut: for tests, mounted where that is allowed."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

IMAGE_BYTES = 24 << 20


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def mounted(where: Path, *arguments: str | Path) -> Iterator[Path]:
    """Mount something on a folder, which is made."""
    where.mkdir(parents=True, exist_ok=True)
    _run("mount", *arguments, where)
    try:
        yield where
    finally:
        _run("umount", "--lazy", where)  # also where a process that was killed is not quite gone yet


def small(where: Path, *, size: str = "1m", inodes: int = 0) -> contextlib.AbstractContextManager[Path]:
    """A disk of so many bytes and, unless 0, so many files."""
    return mounted(where, "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes},mode=0700", "tmpfs")


def remount(where: Path, options: str) -> None:
    """Change a disk that is mounted."""
    _run("mount", "-o", f"remount,{options}", where)


def make_image(path: Path) -> None:
    """Make an empty ext4 file system in a file. It is made whole at once: nothing of it is left for later."""
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", path)


def image(path: Path, where: Path) -> contextlib.AbstractContextManager[Path]:
    """The file system in a file, whose kernel writes nothing of its own accord for ten minutes."""
    return mounted(where, "-o", "loop,commit=600", path)


@cache
def why_no_small_disks() -> str | None:
    """Why tmpfs cannot be mounted here, if it cannot."""
    return _why_not(lambda folder: small(folder / "disk"))


@cache
def why_no_images() -> str | None:
    """Why no file system in a file can be mounted here, if it cannot."""
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed"

    def mount(folder: Path) -> contextlib.AbstractContextManager[Path]:
        make_image(folder / "image")
        return image(folder / "image", folder / "disk")

    return _why_not(mount)


def _why_not(mount: object) -> str | None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root can mount"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mount(Path(folder)):  # type: ignore[operator]
                return None
        except (OSError, subprocess.SubprocessError) as error:
            return f"mounting is not allowed here: {getattr(error, 'stderr', None) or error}".strip()
