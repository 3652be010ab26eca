"""What cuBLASLt logs while the linear layers of a model run, each line with the layer's call that it belongs to."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import torch

from replay.cublaslt import LtError, library


class LtLog:
    """Listens from the start until `close`; on a machine without cuBLASLt it hears nothing.

    The library calls back inside of the call that it logs, so a line belongs to the layer that is open then.
    """

    def __init__(self, device: str) -> None:
        self._lines: dict[int, list[str]] = {}
        self._calls, self._open = 0, 0  # 0: no layer is
        self._stack = ExitStack()
        if device != "cuda" or torch.version.cuda is None:
            return
        with suppress(OSError, LtError):  # then what it would have said is read back from nowhere: not_pinned
            self._stack.enter_context(library(torch.version.cuda).logged(self._take))

    def enter(self) -> None:
        """A linear layer is called."""
        self._open = self._calls = self._calls + 1

    def leave(self) -> None:
        """It has returned."""
        self._open = 0

    def lines(self, call: int) -> tuple[str, ...]:
        """Return the lines of a call, counted from 0, that tell of a product or of a question to the heuristic."""
        return tuple(self._lines.get(call + 1, ()))

    def close(self) -> None:
        """Stop listening."""
        self._stack.close()

    def _take(self, line: str) -> None:
        if "algo=[" in line or "preference=[" in line:
            self._lines.setdefault(self._open, []).append(line)
