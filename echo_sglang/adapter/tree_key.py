"""The keys of Echo's cache tree: SGLang's, quicker where a walk asks them most.

Base: sglang/srt/mem_cache/radix_cache.py::RadixKey.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.radix_cache import RadixKey


class EchoKey(RadixKey):
    """A key that holds just its own tokens: neither capped nor of bigrams, which Echo's cache
    refuses. All answers are upstream's.

    It finds out in one comparison whether another key goes all the way through it, as on every
    node of a walk but the last, where upstream looks for the first difference.
    """

    __slots__ = ()

    @classmethod
    def of(cls, key: RadixKey) -> EchoKey:
        """The same key; tokens are copied only if it is capped."""
        assert not key.is_bigram
        return cls(key.raw_token_ids(), key.extra_key, cache_salt=key.cache_salt)

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, index: int | slice) -> EchoKey:
        if isinstance(index, slice) and index.step is None:
            return EchoKey(self.token_ids[index], self.extra_key, cache_salt=self.cache_salt)
        return EchoKey.of(super().__getitem__(index))

    def followed_by(self, more: EchoKey) -> EchoKey:
        """This key and `more` of the same namespace behind it; O(tokens of both)."""
        tokens = self.token_ids + more.token_ids
        return EchoKey(tokens, self.extra_key, cache_salt=self.cache_salt)

    def child_key_at(self, offset: int, page_size: int = 1) -> Any:
        """What a parent's children are found by: a token, or a page, and a namespace."""
        if page_size == 1 and self.extra_key is None and self.cache_salt is None:
            return self.token_ids[offset]
        return super().child_key_at(offset, page_size)

    def match_at(self, other: RadixKey, offset: int, page_size: int = 1) -> int:
        """Tokens shared with `other` from `offset` on, a multiple of `page_size`."""
        mine = self.token_ids
        whole = (
            other.token_ids[offset : offset + len(mine)] == mine
            and offset + len(mine) <= len(other)
            and (self.extra_key, self.cache_salt) == (other.extra_key, other.cache_salt)
        )
        return len(mine) if whole else super().match_at(other, offset, page_size)
