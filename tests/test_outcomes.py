"""What is told to the store of what workers report."""

from omniq_executor.dispatch.results import claim_ends_of
from omniq_executor.engines.base import RESULTS, Report
from omniq_executor.stores.base import ResultBatch


def test_a_block_whose_ends_alone_look_consecutive_is_taken_apart() -> None:
    """Chunks that came back from dead workers are given again in any order."""
    report = Report(RESULTS, [10, 20, 21, 13, 14], [1] * 5, "[[0],[1],[2],[3],[4]]")
    ends = claim_ends_of([report], {}, 2, 0, lambda: 0)
    assert ends.blocks == [
        ResultBatch(10, 1, 1, "[[0]]"),
        ResultBatch(20, 2, 1, "[[1],[2]]"),
        ResultBatch(13, 2, 1, "[[3],[4]]"),
    ]
    assert [[*numbers] for numbers, _ in ends.resolutions] == [[10], [20, 21], [13, 14]]
