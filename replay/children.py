"""Child processes that run treatments: some for each set of variables that a library reads once, kept until the end.

Standard library. A child that cannot start at all is a TrialError; one that dies or hangs over a trial is an outcome
of that trial, and the next trial gets a fresh child.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Self

from replay import catalogue
from replay.child_process import Child, Died
from replay.trial import Trace, TrialError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from replay.case import Case, Plan
    from replay.journal import Journal
    from replay.trial import Treatment

CHILDREN = {"transformers": "replay.engines.transformers", "vllm": "replay.engines.vllm_replay"}
"""Engine → the module that runs its trials."""
MOST_RUNNING = 3
"""Children kept when one trial runs at a time: each holds a model."""
Variables = tuple[tuple[str, str], ...]


class Children:
    """The running children of one proof. Use as a context manager: leaving it ends them, also on Ctrl-C."""

    def __init__(
        self,
        model_path: str | Path,
        *,
        python: str = sys.executable,
        timeout: float = 600.0,
        journal: Journal | None = None,
        engine: str = "transformers",
        variables: Mapping[str, str] | None = None,
        jobs: int = 1,
    ) -> None:
        """engine: whose trials these are. variables: what every child is started with, whatever its plan.

        jobs: how many threads may call `run` at once.
        """
        self.model_path, self.python, self.timeout, self.journal = str(model_path), python, timeout, journal
        self._module, self._always = CHILDREN[engine], dict(variables or {})
        self._most = MOST_RUNNING + jobs - 1
        self._lock = threading.Lock()  # over the three below and the journal; never held over a trial
        self._idle: list[tuple[Variables, Child]] = []
        self._busy: set[Child] = set()
        self._over = False

    def __enter__(self) -> Self:
        """Start nothing yet: a child starts with its first trial."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all children, those that work too."""
        with self._lock:
            self._over = True
            left = [*self._busy, *(child for _, child in self._idle)]
        for child in left:
            child.end()

    def run(self, case: Case, treatment: Treatment) -> Trace:
        """Return what the treatment gives. Raises TrialError when a child cannot start or blames its input."""
        variables = _variables(treatment.plan)
        if treatment.history is not None and _variables(treatment.history) != variables:
            return Trace(
                treatment.plan, refused="history and step need processes of their own; no KV goes between them"
            )
        child = self._take(variables)
        try:
            with self._lock:
                known = self.journal.find(case, treatment, child.host) if self.journal else None
            trace = known or child.run(case, treatment)
        except Died as end:
            self._drop(child)
            return Trace(treatment.plan, failed=str(end), host=child.host)
        except BaseException:
            self._drop(child)
            raise
        with self._lock:
            if self.journal and known is None:
                self.journal.keep(case, treatment, trace)
            self._busy.discard(child)
            self._idle.append((variables, child))
        return trace

    def _take(self, variables: Variables) -> Child:
        """Return a child that has nothing to do, started if there is none; of the idle ones the oldest makes room."""
        with self._lock:
            for at, (theirs, child) in enumerate(self._idle):
                if theirs == variables:
                    del self._idle[at]
                    self._busy.add(child)
                    return child
            surplus = max(len(self._idle) + len(self._busy) + 1 - self._most, 0)
            ended, self._idle = self._idle[:surplus], self._idle[surplus:]
        for _, child in ended:
            child.end()
        child = Child(self.python, self._module, self._always | dict(variables), self.model_path, self.timeout)
        with self._lock:
            self._busy.add(child)
            over = self._over
        try:
            if over:
                raise TrialError("the proof is over")
            child.start()
        except Died as end:
            self._drop(child)
            raise TrialError(str(end), end.exit_code, end.stderr) from None
        except BaseException:
            self._drop(child)
            raise
        return child

    def _drop(self, child: Child) -> None:
        with self._lock:
            self._busy.discard(child)
        child.end()


def _variables(plan: Plan) -> Variables:
    return tuple(sorted(catalogue.environment(plan).items()))
