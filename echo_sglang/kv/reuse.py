"""How likely the KV of online requests is to be used again, learned by age.

Conversations come back: after seconds or minutes the next turn finds the KV of the last one.
How often they do depends on how long the KV has lain idle, so hits and opportunities are
counted per age bucket, in tokens, and forgotten by half every `half_life_s`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

AGE_EDGES_S = (2.0, 10.0, 30.0, 120.0, 600.0, 3600.0)
"""Ages at which KV passes into the next bucket; the last bucket has no end."""

NUM_BUCKETS = len(AGE_EDGES_S) + 1

PRIOR_HITS = (0.02, 0.05, 0.08, 0.08, 0.05, 0.03, 0.01)
"""Hits per opportunity in each bucket, as long as little was seen: people answer within a
minute or two, if at all."""

PRIOR_TOKENS = 500.0
"""Weight of that prior, in tokens of opportunity."""


def bucket_of(age_s: float) -> int:
    """The age bucket of KV that was last used `age_s` ago."""
    return bisect_right(AGE_EDGES_S, age_s)


class ReuseByAge:
    """Expected future hits of idle online KV per age bucket.

    Within bucket b a share p_b of the tokens that enter it is hit before leaving it. A token
    in bucket b is hit again at least once with probability 1 - prod over b' >= b of (1 - p_b'):
    the expected future hits that eviction counts with (0 to 1). Evicted tokens leave the sample
    half way: whether they would have been hit is unknown.
    """

    __slots__ = ("_changed", "_entered", "_expected", "_half_life_s", "_hits", "_last_s", "_prior")

    def __init__(self, *, half_life_s: float = 1800.0, prior: Sequence[float] = PRIOR_HITS) -> None:
        assert len(prior) == NUM_BUCKETS and all(0 <= p < 1 for p in prior)
        self._half_life_s = half_life_s
        self._prior = tuple(prior)
        self._entered = [0.0] * NUM_BUCKETS
        self._hits = [0.0] * NUM_BUCKETS
        self._last_s = 0.0
        self._changed = False
        self._expected = self._learned()

    def entered(self, bucket: int, tokens: int, now_s: float) -> None:
        """Idle tokens came into this age."""
        self._forget(now_s)
        self._changed = True
        self._entered[bucket] += tokens

    def hit(self, bucket: int, tokens: int) -> None:
        """An online request used tokens of this age again."""
        self._changed = True
        self._hits[bucket] += tokens

    def evicted(self, bucket: int, tokens: int) -> None:
        """Tokens of this age went before anybody could use them."""
        self._changed = True
        self._entered[bucket] = max(self._entered[bucket] - 0.5 * tokens, 0.0)

    def expected(self, bucket: int) -> float:
        """Probability that a token of this age is used again, 0 to 1, as of the last `relearn`.

        Never rises with age.
        """
        return self._expected[bucket]

    def relearn(self) -> None:
        """Let what was counted since change what is expected."""
        if self._changed:
            self._expected = self._learned()
            self._changed = False

    def _learned(self) -> tuple[float, ...]:
        unused = 1.0
        expected = []
        for bucket in reversed(range(NUM_BUCKETS)):
            weight = self._entered[bucket] + PRIOR_TOKENS
            hits = self._hits[bucket] + self._prior[bucket] * PRIOR_TOKENS
            unused *= 1.0 - min(hits / weight, 1.0)
            expected.append(1.0 - unused)
        return tuple(reversed(expected))

    def _forget(self, now_s: float) -> None:
        passed_s = now_s - self._last_s
        if passed_s < self._half_life_s / 64:
            return
        kept = 0.5 ** (passed_s / self._half_life_s)
        self._entered = [kept * tokens for tokens in self._entered]
        self._hits = [kept * tokens for tokens in self._hits]
        self._last_s = now_s
