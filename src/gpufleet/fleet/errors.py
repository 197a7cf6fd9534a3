"""The one error that a user can cause: what happened, under which code, and what to type next."""

from __future__ import annotations


class GpufleetError(Exception):
    """An error with a remedy.

    `reason` is a stable CamelCase code, `message` says what happened to which object, `hint` is the next
    thing to do (a command where there is one). The command line prints all three and never a traceback.
    """

    def __init__(self, *, reason: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.reason})" + (f"; {self.hint}" if self.hint else "")
