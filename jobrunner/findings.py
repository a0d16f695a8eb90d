"""What pydantic finds wrong with a value, in our words: what the value must be."""

from collections.abc import Mapping
from typing import Any

_NUMBER = "must be a number"
_WHOLE = "must be a whole number"
_TRUTH = "must be true or false"
_LIST = "must be a list"
_TABLE = "must be a table"
_UUID = "must be a UUID, such as 3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d11"
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
