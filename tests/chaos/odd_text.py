"""Text as others write it: scripts, escapes, quotes, and what no database takes as it is."""

import random

STORABLE = (
    "naïve Straße, Ελληνικά, 日本語, \N{ROCKET}\N{ZERO WIDTH JOINER}\N{FIRE}",
    "\x1b[31mred\x1b[0m \x1b]0;another title\x07 \x9b2J",
    '\'; DROP TABLE job; -- "quoted" `date` $(date) \\ %s %(name)s {0} ${env:HOME}',
    "from right \N{RIGHT-TO-LEFT OVERRIDE}to left\N{POP DIRECTIONAL FORMATTING} \N{LEFT-TO-RIGHT ISOLATE}on",
    "two\nlines\r\nand\ta tab\x0b\x0c\x85\N{LINE SEPARATOR}2026-01-01T00:00:00.000Z ERROR forged",
    "z" + "\N{COMBINING ACUTE ACCENT}" * 60,
    "  \N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NO-BREAK SPACE}  ",
)
"""Both databases hold these as they are."""
UNSTORABLE = (
    "cut in half \ud83d",
    "ended by \0, and more",
    "from a file's name \udcff\udcfe",
    "\0",
    "\ude80 the halves in the wrong order \ud83d \0\x1b[2J",
)
"""What a door has to make storable: NUL, unpaired surrogates, bytes that were not UTF-8."""
LONG = "a long story; " * 20_000


def exact(rng: random.Random) -> str:
    """Return an odd text that any database holds."""
    return rng.choice(STORABLE)


def any_of_it(rng: random.Random, most: int | None = None) -> str:
    """Return an odd text, storable or not, of at most `most` characters."""
    return rng.choice((*STORABLE, *UNSTORABLE, LONG))[:most]
