"""The tests of a store beside its model can fail: a store that is broken on purpose is found out."""

import pytest
from backends import BACKENDS
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from mutations import MUTATIONS
from test_machine import (
    SETTINGS,
    StoreMachine,
    test_what_chance_does_seldom_is_as_the_model_has_it as seldom,
)

pytestmark = pytest.mark.models

ALL = [(backend, name) for backend, mutations in MUTATIONS.items() for name in mutations]


@pytest.mark.parametrize(("backend", "mutation"), ALL)
@pytest.mark.timeout(600)  # up to 500 programs, until one shows it
def test_the_model_sees_a_broken_store(backend: str, mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[backend][mutation](monkeypatch.setattr)
    how = settings(
        SETTINGS, max_examples=500, phases=[Phase.generate], derandomize=True, database=None, print_blob=False,
        report_multiple_bugs=False,
    )  # fmt: skip

    def looks() -> None:
        seldom(BACKENDS[backend])
        run_state_machine_as_test(lambda: StoreMachine(BACKENDS[backend]), settings=how)

    with pytest.raises(AssertionError):
        looks()
