"""Text that others wrote, made safe to show: it begins no line, moves no terminal, hides no part of itself.

Names, messages and the words of outside systems may hold line ends, escape sequences and marks that
change the direction of writing. Shown as they are, they could forge a line of a log or of a table.
"""

import re
import unicodedata

# Zero-width joiners are needed to write Persian, Hindi and emoji, and change nothing around them.
_HARMLESS = frozenset("\u200c\u200d")
_COLOURS = re.compile(r"(\x1b\[[0-9;:]*m)")
_RESET = "\x1b[0m"


def visible(text: str) -> str:
    """Return the text in one line: what cannot be printed is written as a Python string escapes it."""
    return text if text.isprintable() else "".join(map(_shown, text))


def visible_lines(text: str) -> str:
    """Return the text with its own lines, each of them as by `visible`, and tabs."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))


def in_json(text: str) -> str:
    """Return JSON with the unprintable characters of its strings escaped, which means the same."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def on_terminal(line: str) -> str:
    """Return a line of a job's own output for a terminal: its colours are kept, nothing else steers it.

    A carriage return, by which progress bars overwrite themselves, begins a new line.
    """
    return "\n".join(_coloured(part) for part in line.split("\r") if part or "\r" not in line)


def _coloured(text: str) -> str:
    if "\x1b" not in text:
        return visible_lines(text)
    parts = _COLOURS.split(text)
    shown = "".join(part if index % 2 else visible_lines(part) for index, part in enumerate(parts))
    return shown + _RESET if len(parts) > 1 else shown


def _shown(char: str) -> str:
    if char.isprintable() or char in _HARMLESS:
        return char
    if unicodedata.category(char) == "Zs":  # a space of another width
        return " "
    return char.encode("unicode_escape", "backslashreplace").decode()


def _escaped(char: str) -> str:
    if char.isprintable() or char == "\n" or char in _HARMLESS:
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
