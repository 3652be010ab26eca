"""The one error that a person gets to see: what is wrong, where, and what to do next."""

from __future__ import annotations

USAGE = 2
BAD_INPUT = 3
INCONCLUSIVE = 4
INGEST = "ingest the file that holds it; `forensics quarantine` lists what of the ingested files was set aside"
"""What to do about a record that is not in the store."""


class ForensicsError(Exception):
    """An expected failure. `message` says what and where, `hint` what to do next; the command line prints both."""

    def __init__(self, message: str, exit_code: int = BAD_INPUT, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.hint = hint


def not_replayable(request: str, why: str, hint: str) -> ForensicsError:
    """Return the error of a request that the log does not hold enough of."""
    return ForensicsError(f"request {request!r} cannot be executed again: {why}", INCONCLUSIVE, hint)
