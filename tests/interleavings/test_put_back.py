"""The search can fail: each fault that is put back is found."""

import pytest
from instrument import load
from put_back import MUTATIONS, WITHIN
from scenarios import search
from scheduler import Failure

pytestmark = pytest.mark.models


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_that_is_put_back_is_found(name: str) -> None:
    mutation = MUTATIONS[name]
    with pytest.raises(Failure):
        search(load({mutation.module: mutation.edits}), mutation.scenario, range(WITHIN))
