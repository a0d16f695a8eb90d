"""Text and JSON on their way to a database: whatever they hold, both databases take them."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import JSON, String

from jobrunner import statements
from jobrunner.backends.checks import shown
from jobrunner.database import Database
from jobrunner.errors import SpecError, UsageError
from jobrunner.sqltypes import StateType, StoredJson, StoredText, UtcDateTime
from jobrunner.statements import Sight
from jobrunner.states import JobState
from jobrunner.testing import MemoryMonitorJob
from jobrunner.testing.hostile import Unprintable
from jobrunner.testing.spoiling import ODD_TEXT
from jobrunner.text import DETAIL_MOST, TEXT_MOST, flaw_in, storable, storable_detail, storable_json
from tests.helpers import a_running_job, an_owner, begin_cancel, insert_job, row_of

TEXTS = st.text(st.characters(exclude_categories=()), max_size=30)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.binary(max_size=5)
    | st.builds(lambda: 10**3000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(TEXTS)
def test_every_text_becomes_one_that_can_be_stored_and_a_sound_one_stays(text: str) -> None:
    stored = storable(text)
    assert "\0" not in stored
    stored.encode()
    if flaw_in(text) is None:
        assert stored == text
    assert storable(stored) == stored


@given(VALUES)
def test_every_value_becomes_json_that_can_be_stored(value: Any) -> None:
    stored = storable_json(value)
    assert flaw_in(stored) is None
    json.dumps(stored, allow_nan=False).encode()
    assert len(json.dumps(storable_detail(value))) < 10 * DETAIL_MOST


def test_a_byte_that_is_not_utf8_stays_readable() -> None:
    assert storable(b"caf\xe9".decode("utf-8", "surrogateescape")) == r"caf\xe9"


def test_what_is_too_long_is_cut_where_one_sees_it() -> None:
    assert storable("x" * 300, 250) == "x" * 249 + "…"
    assert len(storable("x" * 10_000_000)) == TEXT_MOST
    detail = storable_detail({f"key {number}": "x" * 20_000 for number in range(100)})
    assert len(json.dumps(detail)) < 2 * DETAIL_MOST
    assert "more left out" in list(detail.values())[-1]


def test_an_object_that_holds_itself_or_cannot_be_shown_is_stored_all_the_same() -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    for value in (endless, {"error": Unprintable()}, [[[endless]]]):
        json.dumps(storable_json(value), allow_nan=False)


def holding_twice(levels: int) -> Any:
    """Return a value of few objects, and 2 to the power of `levels` values."""
    value: Any = "x"
    for _ in range(levels):
        value = {"a": value, "b": value}
    return value


def holding_itself_twice() -> Any:
    value: dict[str, Any] = {}
    value["a"] = value["b"] = value
    return value


class Endless(Mapping[str, int]):
    """A mapping whose keys do not end."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return map(str, count())

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    "value",
    [holding_twice(60), holding_itself_twice(), Endless(), [Endless()]],
    ids=["twice", "itself", "endless", "in"],
)
def test_of_a_value_without_an_end_a_part_is_stored(value: Any) -> None:
    stored = storable_detail(value)
    assert flaw_in(stored) is None
    assert 0 < len(json.dumps(stored)) < 10 * DETAIL_MOST
    assert len(shown(value)) <= 200


def test_a_spec_that_is_billions_of_values_is_refused() -> None:
    with pytest.raises(SpecError, match="more than 1,000,000 values"):
        MemoryMonitorJob(spec=holding_twice(60))
    with pytest.raises(SpecError, match="more than 100 levels"):
        MemoryMonitorJob(spec=holding_itself_twice())


def test_all_text_of_the_tables_goes_through_the_door() -> None:
    for table in statements.tables():
        for column in table.c:
            if isinstance(column.type, (StateType, UtcDateTime)):
                continue
            kind = getattr(column.type, "impl_instance", column.type)
            if isinstance(kind, (String, JSON)):
                assert isinstance(column.type, (StoredText, StoredJson)), column


@pytest.mark.parametrize("reason", [ODD_TEXT, "\ud800\0" * 50_000, "\udcff"], ids=["odd", "long", "byte"])
def test_a_kill_counts_whatever_its_reason_holds(database: Database, reason: str) -> None:
    claim, _ = a_running_job(database, submit_token="token")
    queued = insert_job(database)
    with database.write() as connection:
        statements.request_kill(connection, claim.job_id, reason, reason)
        assert statements.request_kill(connection, queued, reason, reason) is JobState.KILLED
    row = row_of(database, claim.job_id)
    assert row["kill_requested_at"] is not None
    assert row["kill_reason"] == storable(reason)
    with database.write() as connection:
        attempt = statements.Attempt(row["submit_token"], row["external_id"])
        assert begin_cancel(connection, claim, attempt, "kill") is not None
        assert statements.end(
            connection, claim, JobState.KILLED, f"killed: {reason}", detail={reason: reason}
        )
    assert row_of(database, claim.job_id)["state"] is JobState.KILLED


def test_every_statement_takes_odd_text(database: Database) -> None:
    owner = an_owner(hostname=ODD_TEXT * 20, unixname=ODD_TEXT, executor_class=ODD_TEXT * 20)
    odd = {ODD_TEXT: [math.nan, math.inf, 10**5000, ODD_TEXT]}
    with database.write() as connection:
        row = statements.store(
            connection,
            {"job_type": "Bare", "heartrate": 10.0, "name": ODD_TEXT, "hostname": ODD_TEXT, "spec": odd},
            owner,
            ODD_TEXT,
        )
        claim = statements.Claim(row["id"], owner.runner_id, row["claims"])
        assert statements.say_unsubmitted(connection, claim, ODD_TEXT)
        assert statements.tell(connection, claim, ODD_TEXT, odd)
        assert statements.record_submitted(connection, claim.job_id, "token", "work") is False
        assert statements.release(connection, claim, ODD_TEXT)
    assert len(row_of(database, claim.job_id)["hostname"]) <= 250


def test_of_many_rows_those_with_odd_text_are_shown_with_the_others(database: Database) -> None:
    owner = an_owner()
    ids = [insert_job(database, owner, external_id=f"work {number}") for number in range(3)]
    sights = [
        Sight(job_id, 1, f"work {number}", ODD_TEXT, "x" * 200_000, {ODD_TEXT: math.nan})
        if number == 1
        else Sight(job_id, 1, f"work {number}", "RUNNING", "fine", {"a": 1})
        for number, job_id in enumerate(ids)
    ]
    with database.write() as connection:
        assert statements.observe_many(connection, owner.runner_id, sights) == set(ids)
    assert row_of(database, ids[0])["message"] == "fine"
    assert len(row_of(database, ids[1])["message"]) == TEXT_MOST


@pytest.mark.parametrize("spec", [{"a": ["x\0"]}, {"a": "\ud83d"}, {"a": math.nan}, {"a": {1, 2}}], ids=str)
def test_a_spec_that_cannot_be_stored_exactly_is_refused(database: Database, spec: Any) -> None:
    with pytest.raises(SpecError, match="cannot be stored as it is"):
        MemoryMonitorJob(spec=spec)


def test_labels_that_are_too_long_are_refused_before_anything_is_stored(database: Database) -> None:
    for label in ("name", "dag_id"):
        with pytest.raises(UsageError, match=f"{label} of 251 characters is too long"):
            MemoryMonitorJob(**{label: "x" * 251})  # type: ignore[arg-type]
