"""How making a batch ends other than with its images."""

from ldm.errors import UserError


class Cancelled(Exception):
    """The job that is being made was cancelled."""


class InternalError(UserError):
    """A fault of the program, not of the request."""


class ProcessEnded(Exception):
    """The process with the models has ended by itself.

    Attributes:
        how: such as `was killed by SIGKILL`.
    """

    def __init__(self, how: str) -> None:
        self.how = how
        super().__init__(how)
