"""Run plans in child processes and bring back what came out. Standard library: torch lives in the child.

Plans that differ only in factors that a running process can change share one child; a factor that a library reads
once gets a child of its own, started with the variable set. In each child the first plan runs again at the end, and
its trace says whether the bits came out the same.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from replay import catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from replay.case import Case, Plan

CHILD = "replay.engines.transformers"
STDERR_TAIL = 20_000
USAGE, BAD_INPUT, UNDECIDED = 2, 3, 4
TOKEN_RULES = ("argmax", "argmax_lowest", "topk0")
OUT_OF_MEMORY = "out of memory: run on a machine with more of it, or a case of a smaller model or launch"


class TrialError(Exception):
    """The child could not do its work. `stderr`: all that it said, for who asks; `exit_code`: whose fault it is."""

    def __init__(self, message: str, exit_code: int = UNDECIDED, stderr: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.stderr = exit_code, stderr


@dataclass(frozen=True)
class Trace:
    """What one execution showed. `refused`: why the plan could not be honoured; then nothing ran.

    observed: factor → value read back by another path than the pin; details: the launch and kernels as seen;
    repeatable: None when the plan was not run twice in its process, else whether the bits were the same.
    """

    plan: Plan
    tokens: tuple[int, ...] = ()
    logits_sha256: tuple[str, ...] = ()
    top_token_ids: tuple[tuple[int, ...], ...] = ()
    top_logits: tuple[tuple[float, ...], ...] = ()
    observed: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    repeatable: bool | None = None
    host: dict[str, Any] = field(default_factory=dict)

    def same_bits(self, other: Trace, count: int) -> bool:
        """Return whether the first `count` tokens came from the same logits, bit for bit."""
        mine, theirs = self.logits_sha256[:count], other.logits_sha256[:count]
        return len(mine) == count and mine == theirs

    def same_tokens(self, other: Trace, count: int) -> bool:
        """Return whether the first `count` tokens are the same."""
        return len(self.tokens) >= count and self.tokens[:count] == other.tokens[:count]


def trace_from(document: dict[str, Any], host: dict[str, Any]) -> Trace:
    """Build a Trace from a child's JSON."""
    known = {name: document[name] for name in (one.name for one in fields(Trace)) if name in document}
    for name in ("tokens", "logits_sha256"):
        known[name] = tuple(known.get(name, ()))
    for name in ("top_token_ids", "top_logits"):
        known[name] = tuple(tuple(values) for values in known.get(name, ()))
    return Trace(**known | {"host": host})


def unsupported(case: Case) -> str | None:
    """Return why this version cannot run the case again, or None."""
    engine, batching = case.engine.get("engine"), _config(case).get("batching", "static")
    if engine != "transformers":
        return f"the case is of engine {engine!r}; this version runs static batches of transformers again"
    if batching != "static":
        return f"the case is of {batching} batching; this version runs static batches of transformers again"
    if float(case.decode_cfg.get("temperature") or 0) != 0:
        return "the request was sampled at a temperature above 0, and the generator's state is not on record"
    rule, pinned = case.token_rule, case.incident.plan.get("token.rule")
    if rule not in TOKEN_RULES:
        return f"the case's token rule is {rule!r}; this version has {', '.join(TOKEN_RULES)}"
    if rule == "topk0" != pinned:
        return "the case's token rule is 'topk0', and the incident's plan does not hold token.rule=topk0"
    return None


def _config(case: Case) -> dict[str, Any]:
    config = case.engine.get("config") or {}
    return dict(json.loads(config)) if isinstance(config, str) else dict(config)


def run_trials(
    case: Case,
    plans: Sequence[Plan],
    *,
    model_path: str | Path,
    python: str = sys.executable,
    timeout: float = 600.0,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Trace]:
    """Return one trace a plan, in order. Raises TrialError when a child crashes, hangs or answers too little."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, plan in enumerate(plans):
        groups.setdefault(tuple(sorted(catalogue.environment(plan).items())), []).append(index)
    traces: dict[int, Trace] = {}
    for variables, indexes in groups.items():
        todo = [plans[index] for index in indexes]
        found = _run_child(case, todo, dict(variables), str(model_path), python, timeout, say)
        traces.update(zip(indexes, found, strict=True))
    return [traces[index] for index in range(len(plans))]


def _run_child(
    case: Case,
    plans: list[Plan],
    variables: dict[str, str],
    model_path: str,
    python: str,
    timeout: float,
    say: Callable[[str], None],
) -> list[Trace]:
    repeat = [] if len(plans) > 1 and plans[-1] == plans[0] else [plans[0]]
    job = json.dumps({"case": asdict(case), "plans": plans + repeat, "model_path": model_path})
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryDirectory() as only_us:
        # This package alone: the folder that it is installed in may hold another interpreter's torch.
        (Path(only_us) / "replay").symlink_to(Path(__file__).resolve().parent)
        try:
            process = subprocess.Popen(
                [python, "-m", CHILD],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=child_environment(only_us, variables),
            )  # fmt: skip
        except OSError as fault:
            raise TrialError(f"{python} cannot be started (--python): {fault.strerror}", USAGE) from None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        alarm = threading.Timer(timeout, give_up)
        alarm.start()
        try:
            traces = _talk(process, job, len(plans) + len(repeat), say)
            code = process.wait()
        finally:  # also on Ctrl-C
            alarm.cancel()
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                pipe.close() if pipe else None
        _check_end(python, code, timeout if late.is_set() else None, len(traces), len(plans) + len(repeat), errors)
    first, last = traces[0], traces[-1]
    if len(traces) > 1 and first.refused is None:
        count = max(len(first.tokens), len(last.tokens))
        traces[0] = replace(first, repeatable=first.same_bits(last, count) and first.same_tokens(last, count))
    return traces[: len(plans)]


def _check_end(python: str, code: int, late: float | None, answered: int, expected: int, errors: IO[bytes]) -> None:
    """Raise TrialError unless the child did all of its work."""
    errors.seek(0)
    stderr = errors.read().decode("utf-8", "replace").strip()[-STDERR_TAIL:]
    if late is not None:
        what = "--timeout, which covers one child process: loading the model and all of its trials"
        raise TrialError(f"no answer within {late:g} s ({what}); {_last_words(stderr)}", UNDECIDED, stderr)
    if code == 0 and answered == expected:
        return
    if missing := re.search(r"ModuleNotFoundError: No module named '(\w+)'", _last_words(stderr)):
        what = f"{python} has no {missing[1]}: name one that has torch and transformers with --python"
        raise TrialError(what, USAGE, stderr)
    if code == -signal.SIGKILL:
        raise TrialError(f"the system ended {python} -m {CHILD}, most likely {OUT_OF_MEMORY}", BAD_INPUT, stderr)
    what = f"{python} -m {CHILD} ended with code {code} after {answered} of {expected} trials"
    raise TrialError(f"{what}; {_last_words(stderr)}", UNDECIDED, stderr)


def _talk(process: subprocess.Popen[bytes], job: str, expected: int, say: Callable[[str], None]) -> list[Trace]:
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(job.encode())
        process.stdin.close()
    except BrokenPipeError:
        return []  # the child died at once; its code and stderr tell why
    host: dict[str, Any] = {}
    traces: list[Trace] = []
    for line in process.stdout:
        try:
            document = json.loads(line)
        except ValueError:
            continue  # cut off by the end of the child, which is looked at afterwards
        if "fault" in document:
            raise TrialError(document["fault"], BAD_INPUT)
        if "host" in document:
            host = document["host"]
            continue
        traces.append(trace_from(document["trace"], host))
        say(f"{len(traces)}/{expected}")
    return traces


def child_environment(root: str, variables: dict[str, str]) -> dict[str, str]:
    """Return the environment of a child: ours without the recorder, with the package under `root` importable."""
    own = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    kept = [part for part in own if part and Path(part).resolve() != Path(__file__).resolve().parent / "autoload"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FORENSICS_RECORD")}
    return inherited | {"PYTHONPATH": os.pathsep.join(kept), "HF_HUB_OFFLINE": "1"} | variables


def _last_words(stderr: str) -> str:
    """Return the line that says what went wrong: the last exception if there is one, else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    faults = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return f"it said last: {(faults or lines)[-1]}" if lines else "it wrote nothing to stderr"
