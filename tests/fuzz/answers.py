"""What a backend may answer: the contract, whatever the wire brought."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jobrunner.backends.base import Gone, Observation, RemoteError
from jobrunner.errors import BackendError
from jobrunner.states import Phase
from tests.fuzz.messages import ensure_no_secret


def ensure_answers(answers: Any, ids: Iterable[str]) -> None:
    """Hold what `fetch` returned against its contract, id by id."""
    assert isinstance(answers, Mapping)
    assert set(answers) == set(ids)
    for answer in answers.values():
        ensure_answer(answer)


def ensure_answer(answer: Any) -> None:
    """Hold one answer against the contract."""
    assert isinstance(answer, (Observation, Gone, RemoteError)), answer
    if isinstance(answer, Observation):
        assert isinstance(answer.phase, Phase), answer
        assert type(answer.external_state) is str, answer
        assert type(answer.message) is str, answer
        assert type(answer.cause) is str, answer
        assert type(answer.has_run) is bool, answer
        assert isinstance(answer.detail, Mapping), answer
        json.dumps(answer.detail)
        ensure_no_secret(str(answer))
    elif isinstance(answer, RemoteError):
        assert type(answer.message) is str, answer
        assert answer.message
    else:
        assert type(answer.reason) is str, answer
        assert answer.reason


def ensure_error(error: BackendError) -> None:
    """Hold an error of a backend against the rules for messages, but for what it quotes of the outside."""
    ensure_no_secret(str(error))
    assert str(error).strip()
    assert "Traceback" not in str(error)
