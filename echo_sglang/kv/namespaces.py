"""Requests of different LoRA adapters or cache salts share no KV, whatever their tokens."""

from __future__ import annotations

from array import array

Namespace = tuple[str | None, str | None]
"""(extra_key, cache_salt) of SGLang."""

NO_TOKENS: array[int] = array("q")


class Namespaces:
    """Numbers namespaces so that a prompt outside the default one starts with a token of its
    own, which no vocabulary has: then prefixes say all there is to say about sharing."""

    def __init__(self) -> None:
        self._marks: dict[Namespace, array[int]] = {(None, None): NO_TOKENS}

    def mark(self, extra_key: str | None, cache_salt: str | None) -> array[int]:
        """What to put before the tokens of a prompt: nothing, or one negative token."""
        namespace = (extra_key, cache_salt or None)
        mark = self._marks.get(namespace)
        if mark is None:
            mark = self._marks[namespace] = array("q", [-len(self._marks)])
        return mark
