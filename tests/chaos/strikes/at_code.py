"""Strikes at the code of others: it goes wrong for a while."""

from tests.chaos.strikes.hand import Hand
from tests.chaos.switches import WRONG_CODE


class CodeStrikes(Hand):
    """A backend and hooks that raise anything, never return, or answer what they must not."""

    def let_code_of_others_go_wrong(self) -> None:
        """Let the hostile backend and hooks misbehave for a while. It excuses nothing."""
        self.for_a_while(WRONG_CODE, "code of others goes wrong", (2.0, 10.0))
