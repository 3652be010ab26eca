"""The device sampler: a thread of the recording process that writes what GPUs and host are at, as `device` records.

FORENSICS_RECORD_DEVICE_S: seconds from sample to sample, default 1; 0 switches the sampler off. It reads NVML
(`nvml.py`), /proc and cgroup files (`procfs.py`) and sets nothing. Its faults go to the log and never reach the
program. The thread ends with the recorder; a forked child has no such thread.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay import nvml, procfs
from replay.writer import MAX_FAULTS_WRITTEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.record import Recorder

VARIABLE = "FORENSICS_RECORD_DEVICE_S"
DEFAULT_SECONDS = 1.0
CLOSED_WITHIN_SECONDS = 1.0
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def configured_seconds() -> float:
    """Return the seconds between samples, 0 for none; what is no such number is said on stderr, the default taken."""
    text = os.environ.get(VARIABLE) or str(DEFAULT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if 0 <= seconds < math.inf:
        return seconds
    sys.stderr.write(f"forensics: {VARIABLE}={text!r} is not a number of seconds; sampling every {DEFAULT_SECONDS:g}\n")
    return DEFAULT_SECONDS


class Sampler:
    """Samples until the recorder closes. Never raises. The first sample is taken and written before it returns."""

    def __init__(self, recorder: Recorder, seconds: float | None = None) -> None:
        self._recorder = recorder
        self._seconds = configured_seconds() if seconds is None else seconds
        self._gpus: list[nvml.Gpu] = []
        self._seen: set[str] = set()
        self._posture: dict[str, Any] = {}
        self._driver: str | None = None
        self._faults = 0
        self._safely(self._look)
        if self._seconds:
            self._take()
            threading.Thread(target=self._run, name="forensics-device", daemon=True).start()

    def engine_fields(self, observes: dict[str, list[str]], isolation: dict[str, Any]) -> dict[str, Any]:
        """Return what the engine record says once: these two, with what is sampled and what stays; and the driver."""
        sampled = {"device": sorted(self._seen)} if self._seen else {}
        return {"observes": observes | sampled, "isolation": isolation | self._posture, "driver": self._driver}

    def _look(self) -> None:
        self._posture = procfs.posture()
        try:
            self._gpus = nvml.gpus()
        except nvml.Unavailable as fault:
            if NVIDIA_DRIVER.exists():  # elsewhere there is nothing to miss
                self._recorder.write("event", what="recorder_limits", detail={"not_observed": [f"device: {fault}"]})
        if self._gpus:
            self._driver = nvml.driver()
            self._posture["gpus"] = [gpu.posture() for gpu in self._gpus]

    def _run(self) -> None:
        due = time.monotonic() + self._seconds
        while not self._recorder.closed:
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(min(wait, CLOSED_WITHIN_SECONDS))
                continue
            self._take()
            due = max(due + self._seconds, time.monotonic())  # late samples are not made up for

    def _take(self) -> None:
        self._safely(self._take_host)
        for gpu in list(self._gpus):
            self._safely(self._take_gpu, gpu)

    def _safely(self, work: Callable[..., None], *args: Any) -> None:
        """Not the recorder's guard, which is for hooks in the engine's way: NVML takes 20 ms to count PCIe traffic."""
        try:
            work(*args)
        except Exception as fault:  # noqa: BLE001 - whatever it is, the program goes on
            self._faults += 1
            if self._faults <= MAX_FAULTS_WRITTEN:
                detail = {"hook": work.__name__, "fault": f"{type(fault).__name__}: {fault}", "count": self._faults}
                self._recorder.write("event", what="recorder_fault", detail=detail)

    def _take_host(self) -> None:
        self._write(round(time.time(), 6), procfs.sample())

    def _take_gpu(self, gpu: nvml.Gpu) -> None:
        now = round(time.time(), 6)
        try:
            self._write(now, gpu.sample())
        except nvml.DeviceLost:
            self._gpus.remove(gpu)
            self._recorder.write("event", what="device_lost", ts=now, detail={"gpu_uuid": gpu.uuid})

    def _write(self, now: float, fields: dict[str, Any]) -> None:
        self._recorder.write("device", ts=now, **fields)
        self._seen |= fields.keys()
