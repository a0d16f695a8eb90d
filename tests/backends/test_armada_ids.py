"""The external id of an Armada job."""

import pytest

from jobrunner.backends.armada.ids import JobKey, split_all


@pytest.mark.parametrize(
    ("key", "external_id"),
    [
        (JobKey("etl", "nightly", "01abc"), "etl/nightly/01abc"),
        (JobKey("a/b", "50% off", "01abc"), "a%2Fb/50%25%20off/01abc"),
        (JobKey("ü", "日", "x"), "%C3%BC/%E6%97%A5/x"),
    ],
)
def test_an_id_is_joined_and_split_without_a_loss(key: JobKey, external_id: str) -> None:
    assert key.join() == external_id
    assert JobKey.split(external_id) == key


@pytest.mark.parametrize("wrong", ["", "01abc", "a/b", "a/b/", "/b/c", "a//c", "a/b/c/d", "a/b/%20"])
def test_what_lacks_a_part_is_no_id(wrong: str) -> None:
    with pytest.raises(ValueError, match="QUEUE/JOB_SET/JOB_ID"):
        JobKey.split(wrong)


def test_an_empty_part_is_never_joined() -> None:
    with pytest.raises(ValueError, match="is empty"):
        JobKey("etl", "nightly", "").join()


def test_the_wrong_ones_are_told_apart() -> None:
    assert split_all(["a/b/c", "nothing"]) == ({"a/b/c": JobKey("a", "b", "c")}, ["nothing"])
