import sys
from pathlib import Path

import pytest

from jobrunner.errors import UsageError
from jobrunner.extras import require


def test_what_is_installed_is_imported() -> None:
    assert require("json.decoder", "any", "JSON") is sys.modules["json.decoder"]


def test_what_is_missing_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as refused:
        require("no_such_module.inner", "aws", "AWS Batch")
    sentence = "AWS Batch needs no_such_module, which is not installed: pip install 'jobrunner[aws]'."
    assert str(refused.value) == sentence
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UsageError, match="YAML needs PyYAML, which is not installed"):
        require("yaml", "aws", "YAML")


def test_what_is_broken_is_named_with_its_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_extra.py").write_text("from json import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"needs broken_extra, which cannot be imported \(.*nothing_of_this"):
        require("broken_extra", "aws", "AWS Batch")
