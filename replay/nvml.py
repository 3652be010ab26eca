"""NVIDIA devices through NVML: which ones CUDA gives this process, what each says now, and how it is shared.

The one file that knows pynvml. Every value is asked for on its own: one that a card, its driver or the library does not
have is left out, and the others are still read. Nothing is written to a device. Units are those of
`schemas/device.v1.json`; NVML itself gives milliwatts, bytes and KB/s (NVML API reference, "Device Queries").
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replay.host import MIB

CLOCK_EVENTS = (
    "gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal_slowdown",
    "hw_thermal_slowdown", "hw_power_brake_slowdown", "display_clock_setting", "board_limit", "reliability",
)  # fmt: skip
"""nvmlClocksEventReasons*, bit 0 first, by the names that nvidia-smi queries have."""
COMPUTE_MODES = ("default", "exclusive_thread", "prohibited", "exclusive_process")
UNKNOWN_PSTATE = 32

Readings = tuple[Callable[[], dict[str, Any]], ...]


class DeviceLost(Exception):  # noqa: N818 - it is what happened, and no fault of the caller
    """The card fell off the bus; nothing more will come from it before a reboot."""


class Unavailable(Exception):  # noqa: N818 - a machine without NVML is a common one
    """NVML cannot be asked here; the text says why."""


@dataclass(frozen=True)
class Gpu:
    """One device that CUDA offers: a card, or a MIG device (`part`) of the card, which then keeps clocks and power."""

    nvml: Any
    card: Any
    part: Any
    uuid: str

    def sample(self) -> dict[str, Any]:
        """Return what the device says now, as fields of a device record. Raises DeviceLost."""
        return {"gpu_uuid": self.uuid, "device_type": "cuda"} | self._read(_now(self.nvml, self.card, self.part))

    def posture(self) -> dict[str, Any]:
        """Return how the device is shared and protected: what stays while a process uses it. Raises DeviceLost."""
        return self._read(_posture(self.nvml, self.card))

    def _read(self, readings: Readings) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for reading in readings:
            try:
                fields |= reading()
            except AttributeError:
                continue  # this pynvml has no such function
            except self.nvml.NVMLError as fault:
                if fault.value == self.nvml.NVML_ERROR_GPU_IS_LOST:
                    raise DeviceLost(self.uuid) from fault
        return fields


def gpus() -> list[Gpu]:
    """Return the devices of this process, in the order of CUDA_VISIBLE_DEVICES. Raises Unavailable.

    Where that variable counts cards, and CUDA may count them in another order than NVML (cards of several models
    without CUDA_DEVICE_ORDER=PCI_BUS_ID), nobody can say from outside which are meant: then all are returned.
    """
    nvml = _library()
    try:
        nvml.nvmlInit()
        cards = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return _visible(nvml, cards, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except nvml.NVMLError as fault:
        raise Unavailable(f"NVML: {fault}") from fault


def driver() -> str | None:
    """Return the version of the driver. Raises Unavailable."""
    nvml = _library()
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        return None


def _library() -> Any:
    try:
        import pynvml
    except ImportError as fault:
        raise Unavailable("no module pynvml: pip install nvidia-ml-py") from fault
    return pynvml


def _visible(nvml: Any, cards: list[Any], wanted: str | None) -> list[Gpu]:
    parts = [_parts(nvml, card) for card in cards]
    whole = [found[0] for found in parts]  # of a divided card CUDA takes the first MIG device
    entries = [] if wanted is None else [entry.strip() for entry in wanted.split(",")]
    counted = any(entry.isdigit() for entry in entries) and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
    if wanted is None or (counted and len({nvml.nvmlDeviceGetName(card) for card in cards}) > 1):
        return whole
    chosen: list[Gpu] = []
    for entry in entries:
        if entry.isdigit():
            found = whole[int(entry) : int(entry) + 1]
        else:
            found = [gpu for gpus in parts for gpu in gpus if entry and gpu.uuid.startswith(entry)]
        if not found:
            break  # CUDA, too, stops at the first entry that names nothing
        chosen.append(found[0])
    return chosen


def _parts(nvml: Any, card: Any) -> list[Gpu]:
    """Return the MIG devices of a card, or the card itself where it is not divided."""
    found = []
    try:
        places = nvml.nvmlDeviceGetMaxMigDeviceCount(card)
    except nvml.NVMLError:
        places = 0  # a card that knows no MIG
    for place in range(places):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place)
        except nvml.NVMLError:
            continue  # a place without a device
        found.append(Gpu(nvml, card, part, nvml.nvmlDeviceGetUUID(part)))
    return found or [Gpu(nvml, card, card, nvml.nvmlDeviceGetUUID(card))]


def _now(nv: Any, card: Any, part: Any) -> Readings:
    return (
        lambda: {"gpu_index": nv.nvmlDeviceGetIndex(card)},
        lambda: {"gpu_instance_id": nv.nvmlDeviceGetGpuInstanceId(part)},
        lambda: {"compute_instance_id": nv.nvmlDeviceGetComputeInstanceId(part)},
        lambda: _memory(nv.nvmlDeviceGetMemoryInfo(part), vram_free_mb="free", vram_total_mb="total"),
        lambda: _memory(
            # Only this form of the call counts what the driver keeps for itself apart from what is used.
            nv.nvmlDeviceGetMemoryInfo(part, version=nv.nvmlMemory_v2),
            vram_used_mb="used",
            vram_reserved_mb="reserved",
        ),
        lambda: {"sm_clock_mhz": nv.nvmlDeviceGetClockInfo(card, nv.NVML_CLOCK_SM)},
        lambda: {"mem_clock_mhz": nv.nvmlDeviceGetClockInfo(card, nv.NVML_CLOCK_MEM)},
        lambda: {"power_w": nv.nvmlDeviceGetPowerUsage(card) / 1000},
        lambda: {"power_limit_w": nv.nvmlDeviceGetEnforcedPowerLimit(card) / 1000},
        lambda: {"temperature_c": nv.nvmlDeviceGetTemperature(card, nv.NVML_TEMPERATURE_GPU)},
        lambda: {"throttle_reasons": clock_events(nv.nvmlDeviceGetCurrentClocksEventReasons(card))},
        lambda: _known_pstate(nv.nvmlDeviceGetPerformanceState(card)),
        lambda: _utilisation(nv.nvmlDeviceGetUtilizationRates(card)),
        lambda: {"ecc_corrected": _ecc(nv, card, nv.NVML_MEMORY_ERROR_TYPE_CORRECTED)},
        lambda: {"ecc_uncorrected": _ecc(nv, card, nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)},
        lambda: _remapped(*nv.nvmlDeviceGetRemappedRows(card)),
        lambda: {"pcie_rx_mb_s": nv.nvmlDeviceGetPcieThroughput(card, nv.NVML_PCIE_UTIL_RX_BYTES) / 1000},
        lambda: {"pcie_tx_mb_s": nv.nvmlDeviceGetPcieThroughput(card, nv.NVML_PCIE_UTIL_TX_BYTES) / 1000},
        lambda: {"pcie_gen": nv.nvmlDeviceGetCurrPcieLinkGeneration(card)},
        lambda: {"pcie_gen_max": nv.nvmlDeviceGetMaxPcieLinkGeneration(card)},
        lambda: {"pcie_width": nv.nvmlDeviceGetCurrPcieLinkWidth(card)},
        lambda: {"pcie_width_max": nv.nvmlDeviceGetMaxPcieLinkWidth(card)},
        lambda: {"pcie_replays": nv.nvmlDeviceGetPcieReplayCounter(card)},
        lambda: {"compute_processes": len(nv.nvmlDeviceGetComputeRunningProcesses(part))},
        lambda: {"mps_processes": len(nv.nvmlDeviceGetMPSComputeRunningProcesses(part))},
    )


def _posture(nv: Any, card: Any) -> Readings:
    return (
        lambda: {"mig": nv.nvmlDeviceGetMigMode(card)[0] == nv.NVML_DEVICE_MIG_ENABLE},
        lambda: {"compute_mode": COMPUTE_MODES[nv.nvmlDeviceGetComputeMode(card)]},
        lambda: {"confidential": nv.nvmlSystemGetConfComputeState().ccFeature == nv.NVML_CC_SYSTEM_FEATURE_ENABLED},
    )


def clock_events(bits: int) -> list[str]:
    """Return the names of the set bits; a bit that has no name here yet is given as a number."""
    places = [place for place in range(bits.bit_length()) if bits >> place & 1]
    return [CLOCK_EVENTS[place] if place < len(CLOCK_EVENTS) else hex(1 << place) for place in places]


def _memory(info: Any, **fields: str) -> dict[str, float]:
    return {name: round(getattr(info, member) / MIB, 3) for name, member in fields.items()}


def _known_pstate(state: int) -> dict[str, int]:
    return {} if state == UNKNOWN_PSTATE else {"pstate": state}


def _utilisation(rates: Any) -> dict[str, int]:
    return {"gpu_utilization_pct": rates.gpu, "memory_utilization_pct": rates.memory}


def _ecc(nv: Any, card: Any, kind: int) -> int:
    return int(nv.nvmlDeviceGetTotalEccErrors(card, kind, nv.NVML_VOLATILE_ECC))


def _remapped(corrected: int, uncorrected: int, pending: int, failed: int) -> dict[str, Any]:
    return {
        "remapped_rows_corrected": corrected,
        "remapped_rows_uncorrected": uncorrected,
        "remapped_rows_pending": bool(pending),
        "remapped_rows_failed": bool(failed),
    }
