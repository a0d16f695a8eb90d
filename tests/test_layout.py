import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = {"models": "jobrunner/models", "alembic": "jobrunner/migrations"}

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="not in a checkout")

needs_links = pytest.mark.skipif(
    not all((ROOT / name).is_symlink() for name in LINKS),
    reason="the checkout has no symlinks, or is an sdist",
)


def _run(*arguments: str) -> str:
    # `-I` would hide the working directory; a PYTHONPATH of the caller's must not help either.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@needs_links
@pytest.mark.parametrize(("name", "target"), LINKS.items())
def test_the_links_at_the_top_are_relative_and_lead_into_the_package(name: str, target: str) -> None:
    assert (ROOT / name).readlink() == Path(target)
    assert (ROOT / name).is_dir()


@needs_links
def test_models_at_the_top_are_the_very_classes_of_the_package() -> None:
    code = "import jobrunner.models, models; print(models.BaseJob is jobrunner.models.BaseJob)"
    assert _run("-c", code) == "True\n"
    assert (
        _run("-c", "from models import BaseJob; print(BaseJob.__module__.partition('.')[0])") == "jobrunner\n"
    )


def test_alembic_is_still_the_library_at_the_top_of_a_checkout() -> None:
    assert _run("-c", "import alembic.config; print(alembic.config.CommandLine.__name__)") == "CommandLine\n"


def test_the_migrations_are_no_package_that_could_shadow_alembic() -> None:
    assert not list((ROOT / "jobrunner" / "migrations").rglob("__init__.py"))


def test_all_other_folders_with_modules_are_packages() -> None:
    folders = {path.parent for path in (ROOT / "jobrunner").rglob("*.py") if "migrations" not in path.parts}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_no_module_imports_through_the_links_or_relatively() -> None:
    for path in (ROOT / "jobrunner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                assert (node.module or "").partition(".")[0] != "models", path
            elif isinstance(node, ast.Import):
                assert not [name for name in node.names if name.name.partition(".")[0] == "models"], path


@pytest.mark.skipif(not (ROOT / "cli.py").exists(), reason="an installed package")
def test_the_command_line_runs_from_a_checkout() -> None:
    assert "jobrunner" in _run("cli.py", "--help")


def test_help_loads_no_backend_and_no_server() -> None:
    code = (
        "import sys\n"
        "from jobrunner.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    loaded = set(_run("-c", code).rpartition("loaded:")[2].split())
    assert not {"boto3", "botocore", "grpc", "httpx", "distributed", "dask", "fastapi", "uvicorn"} & loaded
