"""The child's side of `replay/children.py`: a line of JSON in, a line of JSON out, whatever engine answers."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from replay.case import Case, CaseError
from replay.casefile import case_from
from replay.engines.faults import out_of_memory
from replay.host import facts, torch_facts
from replay.trial import OUT_OF_MEMORY, Trace, Treatment

if TYPE_CHECKING:
    from collections.abc import Callable


class Engine(Protocol):
    """What answers: it holds one case at a time."""

    case: Case

    def run(self, treatment: Treatment) -> Trace:
        """Return what the treatment gives."""


def answer(engine_for: Callable[[str], Engine]) -> int:
    """Answer each line: first what machine this is, then every treatment. What libraries print goes to stderr.

    What the input is to blame for is answered with {"fault": what and what to do}, and ends the process.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    engine: Engine | None = None
    with answers:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            try:
                if engine is None:
                    engine = engine_for(request["model_path"])
                    _send(answers, {"host": facts() | {"torch": torch_facts()}})
                    continue
                if "case" in request:
                    engine.case = case_from(request["case"], "case")
                _send(answers, {"trace": asdict(_run(engine, Treatment(**request["treatment"])))})
            except CaseError as fault:
                _send(answers, {"fault": str(fault)})
                break
    return 0


def _run(engine: Engine, treatment: Treatment) -> Trace:
    try:
        return engine.run(treatment)
    except (MemoryError, RuntimeError) as fault:
        if not out_of_memory(fault):
            raise
        return Trace(plan=treatment.plan, failed=OUT_OF_MEMORY)


def _send(file: Any, document: dict[str, Any]) -> None:
    file.write(json.dumps(document, allow_nan=False) + "\n")
    file.flush()
