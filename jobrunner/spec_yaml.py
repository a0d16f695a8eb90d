"""YAML as a spec may have it: no key twice, keys that are texts, one document, times left as they stand."""

from typing import Any

from jobrunner.errors import SpecError
from jobrunner.extras import require

_NO_VALUE = (ValueError, LookupError, AttributeError, TypeError, OverflowError)
"""What PyYAML raises where a text does not fit its tag, such as `!!int x`."""
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_TEXTS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def load(text: str, shown: str, *, deepest: int, extra: str = "aws") -> Any:
    """Return the value of a YAML text of one document. Raises `SpecError` with `shown` and the line.

    `deepest`: how many levels it may have. `extra`: with which PyYAML is installed.
    """
    yaml = require("yaml", extra, f"{shown} is not JSON, and YAML")
    try:
        # Not the loader in C: deep nesting overflows its stack, and ends the process without a word.
        return yaml.load(text, _loader_class(yaml, deepest))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(
            f"{shown}, line {line}: the character U+{error.character:04X} is not allowed here."
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = shown if mark is None else f"{shown}, line {mark.line + 1}"
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(f"{place}: {problem}: correct the file.") from None
    except RecursionError:
        raise SpecError(f"{shown} is nested too deeply.") from None
    except _NO_VALUE:
        raise SpecError(
            f"{shown}: a value does not fit its tag, or is a number too long: correct it."
        ) from None


def _loader_class(yaml: Any, deepest: int) -> Any:
    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        # A date in a parameter is the text that it is: JSON has no other form for it.
        yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's form
            first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > deepest + 1:
                problem = f"nested too deeply, more than {deepest} levels"
                raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            # Here, and not where it is constructed: then the keys of `<<` would stand among its own.
            node = super().compose_mapping_node(anchor)
            keys = set()
            for key, _ in node.value:
                if key.tag not in _TEXTS:
                    problem = f"the key {getattr(key, 'value', '')!r} is no text, put it in quotes"
                    if not isinstance(key, yaml.ScalarNode):
                        problem = "a key must be a text"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                if key.value in keys:
                    problem = f"the key {key.value!r} is there twice, remove one"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                keys.add(key.value)
            return node

    return Loader
