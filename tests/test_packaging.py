import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UV = shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")

pytestmark = [
    pytest.mark.packaging,
    pytest.mark.skipif(UV is None, reason="uv is not installed"),
    pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="not in a checkout"),
    pytest.mark.timeout(900),
]


def _run(*command: str | Path, cwd: Path, **variables: str) -> str:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JOBRUNNER_")
        and name not in {"PYTHONPATH", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT"}
    }
    environment = kept | {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"} | variables
    answer = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def _contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was made from it."""
    assert UV is not None
    out = tmp_path_factory.mktemp("dist")
    _run(UV, "build", "--quiet", "--out-dir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


def test_the_wheel_from_the_sdist_is_the_wheel_from_the_tree(dist: Path, wheel: Path, tmp_path: Path) -> None:
    assert UV is not None
    _run(UV, "build", "--quiet", "--wheel", "--out-dir", tmp_path, ROOT, cwd=dist)
    assert _contents(wheel) == _contents(next(tmp_path.glob("*.whl")))


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    folder = ROOT / "jobrunner"
    sources = {
        f"jobrunner/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py") if path.is_file()
    }
    names = {name for name in _contents(wheel) if ".dist-info/" not in name}
    assert {name for name in names if name.endswith(".py")} == sources
    assert "jobrunner/py.typed" in names
    assert any(name.startswith("jobrunner/migrations/versions/") for name in names)
    assert {name.partition("/")[0] for name in names} == {"jobrunner"}


def test_an_installed_wheel_works_from_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    assert UV is not None
    venv, here, data = tmp_path / "venv", tmp_path / "nowhere", tmp_path / "data"
    here.mkdir()
    _run(UV, "venv", "--quiet", venv, cwd=here)
    python = venv / "bin" / "python"
    _run(UV, "pip", "install", "--quiet", wheel, cwd=here, UV_PYTHON=str(python))

    elsewhere = {
        "XDG_DATA_HOME": str(data),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "HOME": str(tmp_path),
    }
    assert "Usage: jobrunner" in _run(venv / "bin" / "jobrunner", "--help", cwd=here, **elsewhere)
    _run(venv / "bin" / "jobrunner", "db", "upgrade", cwd=here, **elsewhere)
    if sys.platform == "linux":
        assert (data / "jobrunner" / "jobrunner.db").is_file()
    _run(python, "-m", "jobrunner.demo", cwd=here, **elsewhere)
    assert not list(here.iterdir())
