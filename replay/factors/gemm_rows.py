"""Row count M of one GEMM role, by filler rows: libraries choose their kernels by it.

gemm.<role>.rows is of the prompt's pass, gemm.<role>.rows.decode of every pass after it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from replay.factors import Evidence, Setup


@dataclass(frozen=True)
class Rows:
    """The factor for one role, in the prompt's pass (number 0) or in later ones (number 1)."""

    role: str
    number: int

    @contextmanager
    def pin(self, value: str, setup: Setup) -> Iterator[None]:
        """Ask for the row count; the layers take it when the trial is built."""
        setup.layers_of(self.role)
        setup.gemm_rows[self.role, self.number] = int(value)
        yield

    def observe(self, evidence: Evidence) -> str | None:
        """Return the rows of the matrix products that the profiler saw in the layers of the role."""
        own = [call for call in evidence.calls if (call.role, call.number) == (self.role, self.number)]
        rows = {call.products[-1][1] for call in own if call.products}
        return str(rows.pop()) if len(rows) == 1 else None


def of(name: str) -> Rows:
    """Return the factor of a full name."""
    return Rows(name.split(".")[1], int(name.endswith(".decode")))
