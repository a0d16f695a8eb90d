"""What must not grow for ever: entries by a key, and the pages of a listing."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

from jobrunner.errors import BackendError

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

PAGES_MOST = 1_000
"""Pages of one listing: more are no listing that ends."""


class Bounded(OrderedDict[_K, _V]):
    """A dictionary of at most `most` entries; one more takes the place of the one that was set first."""

    def __init__(self, most: int = 10_000) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: _K, value: _V) -> None:
        super().__setitem__(key, value)
        while len(self) > self._most:
            del self[next(iter(self))]


class Pages:
    """Counts the pages of one listing, which must come to an end by themselves."""

    def __init__(self, what: str, most: int = PAGES_MOST) -> None:
        self._what = what
        self._most = most
        self._count = 0
        self._seen: set[object] = set()

    def go_on(self, token: Hashable) -> None:
        """Take note of the token of the page that is asked for next.

        Raises `BackendError` for a token that was used before, and beyond the most pages.
        """
        self._count += 1
        if token in self._seen:
            raise BackendError(f"{self._what} does not end: page {self._count} has a token that came before")
        if self._count >= self._most:
            raise BackendError(f"{self._what} does not end: it has more than {self._most} pages")
        self._seen.add(token)
