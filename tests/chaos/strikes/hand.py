"""What every strike can lay its hands on."""

import random
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.bursts import Bursts
from tests.chaos.faults import Faults
from tests.chaos.outside import Outside
from tests.chaos.processes import Place, Processes
from tests.chaos.switches import Switches
from tests.postgres import Postgres


@dataclass
class Hand:
    """The storm's own things, of which a strike takes what it needs."""

    faults: Faults
    processes: Processes
    outside: Outside
    bursts: Bursts
    switches: Switches
    url: str
    rng: random.Random
    postgres: Postgres | None = None
    small_disk: Path | None = None

    def one_of(self, *kinds: str) -> Place | None:
        """Return a place of these kinds that may be struck."""
        places = self.processes.at_peace(*kinds)
        return self.rng.choice(places) if places else None

    def for_a_while(self, switch: str, kind: str, seconds: tuple[float, float], **whom: object) -> None:
        """Turn a switch on, and off again; nothing where it is on."""
        if self.switches.is_on(switch):
            return
        fault = self.faults.note(kind, **whom)
        self.switches.on(switch)

        def take_back() -> None:
            self.switches.off(switch)
            fault.end()

        self.faults.later(self.rng.uniform(*seconds), take_back)
