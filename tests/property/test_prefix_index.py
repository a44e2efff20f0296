"""PrefixIndex against brute force over the list of prompts."""

from __future__ import annotations

from array import array

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from echo_sglang.kv.prefix_index import Node, PrefixIndex
from tests.examples import examples

prompts = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(lambda t: array("q", t))


class IndexAgainstList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index: PrefixIndex[int] = PrefixIndex()
        self.model: dict[int, array[int]] = {}
        self.next_key = 0

    @rule(tokens=prompts)
    def insert(self, tokens: array[int]) -> None:
        node = self.index.insert(self.next_key, tokens)
        assert node.depth == len(tokens)
        self.model[self.next_key] = tokens
        self.next_key += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        tokens = self.model.pop(key)
        nearest = self.index.remove(key)
        longest = max((_shared(tokens, other) for other in self.model.values()), default=0)
        assert nearest.depth >= longest or nearest.count > 0
        assert nearest.count > 0 or nearest is self.index.root

    @rule(tokens=prompts, end=st.integers(0, 12))
    def uses(self, tokens: array[int], end: int) -> None:
        end = min(end, len(tokens))
        counts = [
            sum(other[:depth] == tokens[:depth] for other in self.model.values())
            for depth in range(end + 1)
        ]
        uses = self.index.uses(tokens, end)
        assert uses.waiting == counts[end]
        deeper = [depth for depth in range(end) if counts[depth] > counts[end]]
        assert uses.shared_depth == max(deeper, default=0)

    @invariant()
    def every_prompt_can_be_read_back(self) -> None:
        for key, tokens in self.model.items():
            assert self.index.tokens(key) == tokens
            first = self.index.first_edge(key)
            assert len(first) > 0
            assert first == tokens[: len(first)]

    @invariant()
    def every_node_counts_the_requests_below_it(self) -> None:
        self._check(self.index.root)
        assert self.index.root.count == len(self.model) == len(self.index)

    @invariant()
    def the_best_child_saves_most(self) -> None:
        stack = [self.index.root]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            best = self.index.best_child(node)
            if node.children:
                assert best is not None
                top = max(child.saving_tokens for child in node.children.values())
                assert best.saving_tokens == top

    @invariant()
    def walks_visit_every_request_once(self) -> None:
        walked = [key for key, _ in self.index.walk(self.index.root)]
        assert sorted(walked) == sorted(self.model)

    @invariant()
    def a_prompt_is_below_the_nodes_whose_walk_visits_it(self) -> None:
        nodes = list(self.index.root.children.values())
        while nodes:
            node = nodes.pop()
            below = {key for key, _ in self.index.walk(node)}
            assert {key for key in self.model if self.index.is_below(key, node)} == below
            nodes.extend(node.children.values())
        assert not any(self.index.is_below(key, self.index.root) for key in self.model)

    def _check(self, node: Node[int]) -> int:
        below = len(node.keys) + sum(self._check(child) for child in node.children.values())
        assert node.count == below
        for first, child in node.children.items():
            assert child.parent is node
            assert child.depth == node.depth + len(child.tokens)
            assert child.tokens[0] == first
            assert child.count > 0
        return below


def _shared(a: array[int], b: array[int]) -> int:
    depth = 0
    while depth < min(len(a), len(b)) and a[depth] == b[depth]:
        depth += 1
    return depth


TestPrefixIndex = IndexAgainstList.TestCase
TestPrefixIndex.settings = settings(examples(60), stateful_step_count=60)
