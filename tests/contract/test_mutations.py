"""The tests of a store beside its model can fail: a store that is broken on purpose is found out.

By the programs that are told, each is so at once. That programs made by chance find it too, within 500 of them, takes
minutes: one is shown to be found, and all of them where the environment has OMNIQ_PROOF=1.
"""

import pytest
from backends import BACKENDS, PROOF
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from mutations import MUTATIONS
from test_machine import SETTINGS, TOLD, StoreMachine, play

pytestmark = pytest.mark.models

ALL = [(backend, name) for backend, mutations in MUTATIONS.items() for name in mutations]
SOON = ("what one who leaves had is lost",)


@pytest.mark.parametrize(("backend", "mutation"), ALL)
def test_a_broken_store_is_seen_by_what_is_told(backend: str, mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[backend][mutation](monkeypatch.setattr)

    def plays() -> None:
        for program in TOLD:
            play(program, BACKENDS[backend])

    with pytest.raises(AssertionError):
        plays()


@pytest.mark.parametrize(("backend", "mutation"), [it for it in ALL if PROOF or it[1] in SOON])
@pytest.mark.timeout(600)  # up to 500 programs, until one shows it
def test_a_broken_store_is_seen_by_chance(backend: str, mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[backend][mutation](monkeypatch.setattr)
    how = settings(
        SETTINGS, max_examples=500, phases=[Phase.generate], derandomize=True, database=None, print_blob=False,
        report_multiple_bugs=False,
    )  # fmt: skip
    with pytest.raises(AssertionError):
        run_state_machine_as_test(lambda: StoreMachine(BACKENDS[backend]), settings=how)
