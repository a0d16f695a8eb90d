"""Playing a scenario under the very checks of the model test."""

from jobrunner.database import Database
from tests.model.invariants import judge, stand
from tests.model.machine import machine_on
from tests.model.mutants import Mutant
from tests.model.scenarios import Scenario
from tests.model.world import World


def play(database: Database, scenario: Scenario, mutant: Mutant | None = None) -> None:
    """Let a scenario happen, and all come to its end. Raises `Broken`."""
    world = World(database, judge, None if mutant is None else mutant.applied)
    machine = machine_on(lambda: world)()
    try:
        scenario(machine)
        stand(world)
    except BaseException:
        machine.broken = True
        raise
    finally:
        machine.teardown()
