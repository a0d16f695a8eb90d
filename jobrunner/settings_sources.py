"""Where settings come from: environment and files, read and laid over each other with their origins.

A tree is a dictionary of names to trees or to a `Leaf`, which remembers where its value was set.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

from jobrunner.errors import SettingsError
from jobrunner.findings import problem_of
from jobrunner.paths import absolute, config_dirs, is_file_to_read, read_file
from jobrunner.redaction import looks_secret, mask_value

ENV_PREFIX = "JOBRUNNER_"
FILE_NAME = "jobrunner.toml"
FILE_VARIABLE = "JOBRUNNER_CONFIG"

_TROUBLES = {
    errno.EFBIG: "is larger than 1 MiB: is it the right file?",
    errno.EINVAL: "is not a regular file: name one, or unset it",
}
_WANTS_TABLE = frozenset({"dict_type", "model_type", "model_attributes_type"})


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value and where it was set, in words for a person."""

    value: Any
    source: str


Tree = dict[str, "Tree | Leaf"]


class _Environment(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        # A client id or password of digits must stay the text that it is: only tables and lists are JSON.
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            try:
                return super().decode_complex_value(field_name, field, value)
            except RecursionError:
                raise ValueError(f'field "{field_name}": nested too deeply') from None
        return value


def gather(settings_class: type[BaseSettings], overrides: Mapping[str, Any]) -> Tree:
    """Return the merged tree: files, then the environment over them, then `overrides`."""
    tree: Tree = {}
    for path in reversed(config_files()):
        _lay_over(tree, _read_file(path))
    _lay_over(tree, _read_environment(settings_class))
    _lay_over(tree, _tree(overrides, lambda _: "code"))
    return tree


def config_files() -> list[Path]:
    """Return where `jobrunner.toml` is looked for, the strongest first."""
    if named := os.environ.get(FILE_VARIABLE):
        try:
            return [absolute(named)]
        except ValueError as error:
            raise SettingsError(f"{FILE_VARIABLE} {error}") from None
    directories = [*config_dirs()]
    with suppress(FileNotFoundError):  # the working directory was removed
        directories.insert(0, Path.cwd())
    return [directory / FILE_NAME for directory in dict.fromkeys(directories)]


def plain(tree: Tree) -> dict[str, Any]:
    """Return the tree's values alone."""
    return {key: node.value if isinstance(node, Leaf) else plain(node) for key, node in tree.items()}


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Leaf]]:
    """Yield every leaf with its path."""
    for key, node in tree.items():
        if isinstance(node, Leaf):
            yield (*path, key), node
        else:
            yield from leaves(node, (*path, key))


def explain(error: ValidationError, tree: Tree, known: Mapping[tuple[str, ...], frozenset[str]]) -> str:
    """Return one sentence on the first problem: what is wrong, where it was set, what to do.

    `known` maps a table's path to the names that are allowed in it, for a suggestion.
    """
    first = error.errors(include_url=False)[0]
    path = tuple(str(part) for part in first["loc"])
    name = ".".join(path)
    source = _source_of(tree, path)
    where = f" ({source})" if source else ""
    if first["type"] == "extra_forbidden":
        table = path[:1] if len(path) > 1 else ()
        return f'unknown setting "{name}"{where}: {_suggestion(path[-1], known.get(table, frozenset()))}'
    if first["type"] == "missing":
        return f'"{name}" is missing{where}: add it there'
    problem = problem_of(first)
    shown = _shown(path, first["input"], wants_table=first["type"] in _WANTS_TABLE)
    advice = "" if ": " in problem else ": correct it there"  # our own words may say what to do
    return f"{name} = {shown}{where} {problem}{advice}"


def _shown(path: tuple[str, ...], value: Any, *, wants_table: bool) -> str:
    """Return a wrong value, or what it is where it cannot be quoted.

    Nobody can tell which part of a table, or of a text in place of one, is a secret.
    """
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        return "a text that is not valid JSON" if wants_table else "a text that begins like a table"
    if wants_table:
        return "a text" if isinstance(value, str) else "a single value"
    return mask_value(secret_name(path), value)


def secret_name(path: Sequence[str]) -> str:
    """Return the name by which the value at a path is to be judged: whatever is below a secret is one.

    The second part of a path is a name that somebody gave: of a connection, or of a job type.
    """
    return next((part for part in path[2:] if looks_secret(part)), path[-1])


def _suggestion(name: str, known: frozenset[str]) -> str:
    import difflib  # here: only an error needs it

    close = difflib.get_close_matches(name, known, n=1)
    return f'did you mean "{close[0]}"?' if close else f"known are {', '.join(sorted(known))}"


def _source_of(tree: Tree, path: tuple[str, ...]) -> str:
    node: Tree | Leaf = tree
    for part in path:
        if isinstance(node, Leaf) or part not in node:
            break
        node = node[part]
    if isinstance(node, Leaf):
        return node.source
    return next((leaf.source for _, leaf in leaves(node)), "")


def _tree(values: Mapping[str, Any], source: Any, path: tuple[str, ...] = ()) -> Tree:
    return {
        str(key): _tree(value, source, (*path, str(key)))
        if isinstance(value, Mapping) and value
        else Leaf(value, source((*path, str(key))))  # an empty table, too: an error about it names its source
        for key, value in values.items()
    }


def _lay_over(tree: Tree, upper: Tree, *, fold: bool = False) -> None:
    """Write `upper` over `tree`, deeply.

    `fold`: a name that differs only in case is the same one, because an environment variable
    cannot tell `BatchMonitorJob` from `batchmonitorjob`.
    """
    for key, node in upper.items():
        same = key
        if fold and key not in tree:
            same = next((other for other in tree if other.casefold() == key.casefold()), key)
        below = tree.get(same)
        if isinstance(node, dict) and isinstance(below, dict):
            _lay_over(below, node, fold=True)
        elif not (isinstance(node, Leaf) and node.value == {} and isinstance(below, dict)):
            tree[same] = node


def _read_environment(settings_class: type[BaseSettings]) -> Tree:
    names = {name.upper(): name for name in os.environ}

    def source(path: tuple[str, ...]) -> str:
        for length in range(len(path), 0, -1):
            name = ENV_PREFIX + "__".join(path[:length]).upper()
            if name in names:
                return f"environment {names[name]}"
        return "environment"

    try:
        values = _Environment(settings_class)()
    except ValueError as error:  # pydantic_settings.SettingsError: a value begins like JSON and is none
        broken = getattr(error, "field_name", None) or re.findall(r'field "(\w+)"', str(error))[0]
        raise SettingsError(f"{source((broken,))} is not valid JSON: correct it there") from None
    return _tree(values, source)


def _read_file(path: Path) -> Tree:
    shown = f"{path.name} ({path})"
    text = _text_of(path, shown)
    if text is None:
        return {}

    import tomllib  # here: most processes find no file

    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = found[1] if found else str(max(1, len(text.splitlines())))
        problem = re.sub(r" \(at .*\)$", "", str(error))
        raise SettingsError(f"{path}, line {line}: {problem}: correct the file") from None
    except RecursionError:
        raise SettingsError(f"{shown} is nested too deeply: correct the file") from None
    except ValueError:  # Python reads no number of thousands of digits
        raise SettingsError(f"{shown} holds a number that is too long: correct the file") from None
    return _tree(values, lambda _: shown)


def _text_of(path: Path, shown: str) -> str | None:
    """Return what a file holds; None: there is none, and none was named."""
    is_named = bool(os.environ.get(FILE_VARIABLE))
    if not is_named and not is_file_to_read(path):
        return None
    try:
        return read_file(path).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        if is_named:
            raise SettingsError(
                f"{FILE_VARIABLE} names {path}, which does not exist: correct it or unset it"
            ) from None
        return None
    except OSError as error:
        raise SettingsError(f"{shown} {_TROUBLES.get(error.errno or 0) or _unreadable(error)}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{shown} is not UTF-8: save it as UTF-8") from None


def _unreadable(error: OSError) -> str:
    return f"cannot be read ({error.strerror}): let this user read it or move it"
