"""Rows and values as parameters: many rows in one, and each value as both databases can hold it."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Text, bindparam, func, literal_column
from sqlalchemy.dialects.postgresql import JSONB


def given_rows(dialect: str, names: Sequence[str], kinds: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the rows of the parameter `rows` as something to select from, and their columns by name.

    `kinds`: the types of the columns that are no text, on PostgreSQL.
    """
    rows: Any = bindparam("rows", type_=Text)
    numbers = range(len(names))
    if dialect != "postgresql":
        each: Any = func.json_each(rows).table_valued("value")
        values: list[Any] = [func.json_extract(each.c.value, literal_column(f"'$[{n}]'")) for n in numbers]
        return each, dict(zip(names, values, strict=True))
    each = func.jsonb_array_elements(rows.cast(JSONB)).table_valued("value")
    values = [each.c.value.op("->>")(literal_column(str(n))) for n in numbers]
    said = dict(zip(names, values, strict=True))
    for name, kind in kinds.items():
        said[name] = said[name].cast(kind)
    return each, said


def json_of(rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as JSON that both databases take, whatever a backend has put into its detail."""
    try:
        text = json.dumps(rows, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        text = ""
    if not text or "\\u0000" in text:  # which PostgreSQL refuses: one row must not spoil all others
        text = json.dumps(plain(rows), ensure_ascii=False)
    return text if text.isascii() else text.encode(errors="replace").decode()


def plain(value: Any) -> Any:
    """Return a value as both databases can hold it: a text is one, and all else has a form in JSON."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return plain(str(value))
