"""What the process logs: how much of it, and how often the same."""

import logging
import re
import time
from collections import Counter

MOST_A_MINUTE = 10
"""How often the same line may be logged: once by each runner, and there are new ones with every round."""
_MINUTE_S = 60.0
_NUMBER, _FIELDS = re.compile(r"\d+(\.\d+)?"), re.compile(r" \w+=")


class Words(logging.Handler):
    """Counts, by event, the lines that are logged, and how often at most the same one within a minute."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: Counter[str] = Counter()
        self.most_a_minute: Counter[str] = Counter()
        self._lines: dict[str, tuple[float, int]] = {}
        """When each was logged first, and how often since."""

    def emit(self, record: logging.LogRecord) -> None:
        line, now_s = record.getMessage(), time.monotonic()
        event = _NUMBER.sub("N", _FIELDS.split(line, maxsplit=1)[0])
        self._lines = {each: seen for each, seen in self._lines.items() if now_s - seen[0] < _MINUTE_S}
        first_s, count = self._lines.get(line, (now_s, 0))
        self._lines[line] = first_s, count + 1
        self.said[event] += 1
        self.most_a_minute[event] = max(self.most_a_minute[event], count + 1)

    def noise(self) -> list[str]:
        """Return, each as a sentence, which events were logged too often in the same words."""
        return [
            f"{event!r} was logged {count} times within a minute, in the same words"
            for event, count in self.most_a_minute.most_common()
            if count > MOST_A_MINUTE
        ]
