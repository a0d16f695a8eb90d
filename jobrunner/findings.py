"""What is wrong with a value, in our words: what it must be, and what it is."""

from collections.abc import Mapping
from typing import Any

_NUMBER = "must be a number"
_WHOLE = "must be a whole number"
_TRUTH = "must be true or false"
_LIST = "must be a list"
_TABLE = "must be a table"
_UUID = "must be a UUID, such as 3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d11"
_SCALARS = {bool: "the boolean", int: "the number", float: "the number", str: "the text"}
_SHOWN = 60  # characters of a value
_PROBLEMS = {
    "bool_parsing": _TRUTH,
    "bool_type": _TRUTH,
    "dict_type": _TABLE,
    "extra_forbidden": "is not known here: remove it",
    "finite_number": "must be a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "is too large",
    "int_type": _WHOLE,
    "less_than_equal": "must be {le} or less",
    "list_type": _LIST,
    "missing": "is missing",
    "model_type": _TABLE,
    "path_type": "must be a path",
    "string_sub_type": "must be a text",
    "string_too_short": "must not be empty",
    "string_type": "must be a text",
    "string_unicode": "holds bytes that are not UTF-8",
    "too_short": "must not be empty",
    "tuple_type": _LIST,
    "uuid_parsing": _UUID,
    "uuid_type": _UUID,
}


def problem_of(finding: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, to follow its name (`must be a number`).

    `finding`: one of `ValidationError.errors()`. The words of our own validators are taken as they are.
    """
    words = _PROBLEMS.get(finding["type"], "").format(**finding.get("ctx", {}))
    return words or finding["msg"].removeprefix("Value error, ").rstrip(".")


def named(value: object) -> str:
    """Return a value as it is called in a message, such as `the number 3`."""
    if value is None:
        return "empty"
    if type(value) in _SCALARS:
        return f"{_SCALARS[type(value)]} {value!r:.{_SHOWN}}"
    kinds = ((Mapping, "a mapping"), (list | tuple | set, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def no_text(value: object) -> str:
    """Return what is wrong with a value that must be a text, to follow its name."""
    hint = ": put it in quotes" if type(value) in _SCALARS else ""
    return f"must be a text, and is {named(value)}{hint}"
