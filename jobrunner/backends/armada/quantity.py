"""Kubernetes quantities (`500m`, `1Gi`, `0.5`): whether they are right, and whether two are the same."""

import re
from decimal import Decimal


class Mistake(ValueError):
    """A value in a description is not as it must be."""


_FORM = re.compile(
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][+-]?\d{1,3})?", re.ASCII
)
_LONGEST = 64
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def text_of(value: object) -> str:
    """Return a quantity as a text; YAML may have made a number of it. Raises `Mistake` where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Mistake("is no quantity, such as 500m, 2 or 1Gi")
    text = value if isinstance(value, str) else str(value)
    if len(text) > _LONGEST or not _FORM.fullmatch(text):
        raise Mistake(f"is {text[:_LONGEST]!r}, which is no quantity, such as 500m, 2 or 1Gi")
    return text


def amount_of(text: str) -> Decimal:
    """Return how much a quantity is. Raises `Mistake` where it is none."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise Mistake(f"{text!r} is no quantity")
    number, suffix = Decimal(found["number"]), found["suffix"] or ""
    if suffix in _BINARY:
        return number * Decimal(2 ** _BINARY[suffix])
    exponent = _DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:])
    return number.scaleb(exponent)
