"""Rows and values as parameters: many rows in one, and each value as both databases can hold it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Text, bindparam, func, literal_column
from sqlalchemy.dialects.postgresql import JSONB

from jobrunner.text import TEXT_MOST, flaw_in, storable_detail, storable_json

_LONG, _LONG_ROW = TEXT_MOST, 1_000


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
    """Return rows as JSON that both databases take, whatever a backend has said."""
    try:
        text = json.dumps(rows, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = ""
    # A walk through all of it would cost three times as much as this, and is hardly ever needed.
    if (
        not text
        or "\\u0000" in text
        or len(text) > _LONG + _LONG_ROW * len(rows)
        or flaw_in(text) is not None
    ):
        plain = [[_bounded(each) for each in row] for row in rows]
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    return text


def _bounded(value: Any) -> Any:
    return storable_detail(value) if isinstance(value, Mapping) else storable_json(value)
