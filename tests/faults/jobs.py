"""What these tests have workers run."""

from pathlib import Path

import calls


def large_after(journal: Path, gate: Path, size: int) -> str:
    """Note that it runs; return a text of that size once the gate is there."""
    calls.note(journal, size)
    calls.wait_for(gate)
    return "x" * size
