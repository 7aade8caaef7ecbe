"""What a pickle holds, as text."""

import pickle
from typing import Any

from omniq_executor.model.preview import preview


class Node:
    """Refers to what it hangs from, and to what hangs from it."""

    def __init__(self, parent: "Node | None" = None) -> None:
        self.parent = parent
        self.children: list[Node] = []
        if parent is not None:
            parent.children.append(self)


def test_objects_that_refer_to_each_other_are_shown_to_some_depth() -> None:
    root = Node()
    for _ in range(6):
        Node(Node(Node(root)))
    text = preview(pickle.dumps(((root, root), {"also": root})))
    assert text.startswith("((test_preview.Node({")
    assert len(text) < 1000


def test_objects_with_two_references_each_to_the_one_before_are_shown_at_once() -> None:
    last: Any = Node()
    for _ in range(40):
        node = Node()
        node.children = [last, last]
        last = node
    assert preview(pickle.dumps(last)).startswith("test_preview.Node({")
