"""One statement for many rows: where the database refuses it for what one of them holds, the others go on."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from jobrunner.errors import DatabaseError, DatabaseUnavailable, SchemaError

_T = TypeVar("_T")

_REFUSED_MOST = 20
"""Rows: where more are refused, it is not the rows that are at fault."""


def all_but_refused(
    write: Callable[[list[int]], list[_T]], ids: Sequence[int]
) -> tuple[list[_T], Mapping[int, DatabaseError]]:
    """Write for many rows at once; return the answers, and for each row that is refused why it is.

    Halving finds those. Raises `DatabaseError`: an outage, and where too many are refused.
    """
    answers: list[_T] = []
    refused: dict[int, DatabaseError] = {}
    left = [list(ids)]
    while left:
        some = left.pop()
        try:
            answers += write(some)
        except (DatabaseUnavailable, SchemaError):
            raise
        except DatabaseError as error:
            if len(some) > 1:
                half = len(some) // 2
                left += [some[half:], some[:half]]
                continue
            if len(refused) >= _REFUSED_MOST:
                raise
            refused[some[0]] = error
    return answers, refused
