"""What chaos does: each strike hits something at random, is noted as a fault, and is taken back."""

from tests.chaos.strikes.at_code import CodeStrikes
from tests.chaos.strikes.at_database import DatabaseStrikes
from tests.chaos.strikes.at_outside import OutsideStrikes
from tests.chaos.strikes.at_processes import ProcessStrikes


class Chaos(ProcessStrikes, DatabaseStrikes, OutsideStrikes, CodeStrikes):
    """Strikes at random. Each method does one fault, or none where there is nothing that it could strike."""


__all__ = ["Chaos"]
