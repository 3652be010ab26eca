"""A file is a report format; its name is the --format value. A report is a pure function of an Explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import TextIO

    from forensics.explanation import Explanation


class Report(Protocol):
    """What every file in this room offers."""

    def render(self, explanation: Explanation, out: TextIO) -> None:
        """Write the explanation to `out`."""
        ...
