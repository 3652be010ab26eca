"""Run a command with the recorder on, and hand on to it what is sent to us.

The recorders live in `replay.engines` and load themselves from one folder that this module puts on the child's path:
vLLM through its plugin entry point, transformers through a `sitecustomize`. Nothing is imported here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from forensics.errors import ForensicsError
from forensics.recorded import Recording, is_recording, summary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LOOK_SECONDS = 0.2
"""How often to look whether the child still runs."""


@dataclass(frozen=True)
class Settings:
    """How to record; what is None or empty is left to the recorder, or to the variable that the user has set.

    A field is the variable FORENSICS_RECORD_<NAME>, `replica` is FORENSICS_REPLICA. `_mb` are MiB, `_s` seconds.
    """

    ids: bool = False
    logits_sha256: bool = False
    replica: str | None = None
    compress: str | None = None
    segment_mb: float | None = None
    segment_s: float | None = None
    keep_mb: float | None = None
    keep_s: float | None = None
    ring_s: float | None = None
    triggers: tuple[str, ...] = ()
    sample: int | None = None
    device_s: float | None = None

    def variables(self) -> dict[str, str]:
        """Return the environment variables that say so."""
        names = {name: f"FORENSICS_RECORD_{name.upper()}" for name in vars(self)} | {"replica": "FORENSICS_REPLICA"}
        return {names[name]: _written(value) for name, value in vars(self).items() if value}


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(int(value)) if isinstance(value, (bool, float)) and value == int(value) else str(value)


def prepare(directory: Path) -> None:
    """Make the folder of a recording, and make sure that it can be written before a server starts."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"\n")
    except OSError as fault:
        raise ForensicsError(
            f"{directory}: cannot write a recording there: {fault.strerror}", 3, "choose another --out"
        ) from None


def environment(directory: Path, settings: Settings) -> dict[str, str]:
    """Return the child's environment: where and how to record, and the folder that loads the recorders."""
    spec = find_spec("replay")
    if spec is None or spec.origin is None:
        raise ForensicsError("the package `replay` is not installed", 3, "install inference-forensics again")
    autoload = str(Path(spec.origin).parent.resolve() / "autoload")
    path = [autoload, *filter(None, [os.environ.get("PYTHONPATH")])]
    changed = {"FORENSICS_RECORD": str(directory.resolve()), "PYTHONPATH": os.pathsep.join(path)}
    return os.environ | settings.variables() | changed


def record(command: Sequence[str], directory: Path, variables: Mapping[str, str]) -> Recording:
    """Run the command until it ends, hand signals on, and count what its recorders wrote into the folder.

    variables: the child's environment, from `environment`.
    """
    before = set(directory.iterdir())
    with _signals_held() as inherited:
        try:
            child = subprocess.Popen(
                list(command), env=dict(variables), preexec_fn=lambda: _set_signal_mask(inherited)
            )  # the child must not start with our signals held
        except OSError as fault:
            raise ForensicsError(
                f"cannot start {command[0]!r}: {fault.strerror}", 3, "check the command after --"
            ) from None
        _wait(child)
    time.sleep(0.3)  # engine processes of a server may close their file a moment after it
    files = sorted(path for path in directory.iterdir() if path not in before and is_recording(path))
    code = child.returncode
    return summary(code if code >= 0 else 128 - code, files)


def _wait(child: subprocess.Popen[bytes]) -> None:
    """Wait for the child to end; what another process sends to us reaches the child.

    What the terminal sends (Ctrl-C, hanging up) has already reached it, as it reaches the whole process group: handed
    on, it would come twice, and servers take a second Ctrl-C as an order to drop their requests. sudo(8) does the same.
    """
    while child.poll() is None:
        sent = signal.sigtimedwait(HANDED_ON, LOOK_SECONDS)
        if sent is not None and sent.si_code <= 0:  # SI_USER and its like; above 0: the kernel, for the terminal
            child.send_signal(sent.si_signo)
    while signal.sigtimedwait(HANDED_ON, 0) is not None:
        pass  # what came as it ended was meant for it


@contextlib.contextmanager
def _signals_held() -> Iterator[set[int]]:
    """Hold the signals that are handed on, so that none is lost; give the mask that was in force before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_signal_mask(mask: set[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
