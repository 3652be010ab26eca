"""What Linux says of this host, this process and its cgroup: /proc, /sys and cgroup v2. No torch, no subprocess.

Counters are given as the kernel keeps them, since boot or since the process or cgroup began: differences are the
reader's. A file that this kernel or container has not leaves its fields out. Sources: proc(5), getrusage(2) and the
kernel's admin-guide/cgroup-v2 and accounting/psi.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

KIB_IN_MIB = 1024
MIB = 1 << 20
GUESTS = ("tdx_guest", "sev_snp", "sev_es", "sev")
"""Flags of /proc/cpuinfo, and devices, that tell a confidential virtual machine from inside."""

Readings = tuple[Callable[[Path], dict[str, Any]], ...]


def sample(root: Path = Path("/")) -> dict[str, Any]:
    """Return what host, process and cgroup are at now, as fields of a device record. Never raises for a missing file.

    `root`: where /proc and /sys lie.
    """
    return {"device_type": "cpu"} | _read(NOW, root)


def posture(root: Path = Path("/")) -> dict[str, Any]:
    """Return what holds this process apart from others and stays: CPUs, quota, memory nodes, SMT, governor."""
    return _read(POSTURE, root)


def mem_available_mb() -> float | None:
    """Return what /proc/meminfo calls available, in MiB; None where there is no such file."""
    return _read((_memory,), Path("/")).get("mem_available_mb")


def _read(readings: Readings, root: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for reading in readings:
        try:
            fields |= reading(root)
        except (OSError, LookupError, ValueError, StopIteration):
            continue  # not on this kernel, or in a form that we do not know
    return fields


def _pairs(path: Path, separator: str | None = None) -> dict[str, str]:
    """Return the file's lines 'name value' as a dict, the first of equal names."""
    pairs: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, *value = line.split(separator, 1)
        pairs.setdefault(name.strip(), "".join(value).strip())
    return pairs


def _memory(root: Path) -> dict[str, Any]:
    kib = {name: int(value.split()[0]) for name, value in _pairs(root / "proc/meminfo", ":").items()}
    swap = (kib["SwapTotal"] - kib["SwapFree"]) / KIB_IN_MIB
    return {"mem_available_mb": round(kib["MemAvailable"] / KIB_IN_MIB, 3), "swap_used_mb": round(swap, 3)}


def _process(root: Path) -> dict[str, Any]:
    pages = int((root / "proc/self/statm").read_text().split()[1])
    return {"rss_mb": round(pages * resource.getpagesize() / MIB, 3)}


def _usage(_root: Path) -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)  # of all threads; /proc/self/status counts the first one's only
    return {
        "major_page_faults": usage.ru_majflt,
        "voluntary_ctxt_switches": usage.ru_nvcsw,
        "nonvoluntary_ctxt_switches": usage.ru_nivcsw,
    }


def _load(root: Path) -> dict[str, Any]:
    return {"loadavg_1m": float((root / "proc/loadavg").read_text().split()[0])}


def _steal(root: Path) -> dict[str, Any]:
    ticks = _pairs(root / "proc/stat")["cpu"].split()[7]
    return {"cpu_steal_s": int(ticks) / os.sysconf("SC_CLK_TCK")}


def _clock(root: Path) -> dict[str, Any]:
    """Of the CPUs that this process may run on: a job waits for the slowest."""
    allowed, clocks, number = os.sched_getaffinity(0), [], -1
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "processor":
            number = int(value)
        elif name.strip() == "cpu MHz" and number in allowed:
            clocks.append(float(value))
    return {"cpu_clock_mhz": round(sum(clocks) / len(clocks), 3), "cpu_clock_min_mhz": min(clocks)} if clocks else {}


def _pressure(resource_name: str) -> Callable[[Path], dict[str, Any]]:
    def read(root: Path) -> dict[str, Any]:
        some = dict(part.split("=") for part in _pairs(root / "proc/pressure" / resource_name)["some"].split())
        return {f"psi_{resource_name}_some_avg10_pct": float(some["avg10"])}

    return read


def _cgroup(root: Path) -> Path:
    """Return the folder of this process's own cgroup v2. Raises StopIteration or OSError where there is none."""
    mounts = (line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines())
    base, place = next((one[3], one[4]) for one in mounts if one[one.index("-") + 1] == "cgroup2")
    lines = (root / "proc/self/cgroup").read_text().splitlines()
    group = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
    return root / place.lstrip("/") / group.removeprefix(base).lstrip("/")


def _cgroup_memory(file: str, field: str) -> Callable[[Path], dict[str, Any]]:
    def read(root: Path) -> dict[str, Any]:
        text = (_cgroup(root) / file).read_text().strip()
        return {} if text == "max" else {field: round(int(text) / MIB, 3)}  # max: no limit

    return read


def _cgroup_events(root: Path) -> dict[str, Any]:
    events = _pairs(_cgroup(root) / "memory.events")
    return {f"cgroup_memory_{name}_events": int(events[name]) for name in ("high", "max", "oom", "oom_kill")}


def _cgroup_cpu(root: Path) -> dict[str, Any]:
    stat = _pairs(_cgroup(root) / "cpu.stat")
    return {"cgroup_nr_throttled": int(stat["nr_throttled"]), "cgroup_throttled_us": int(stat["throttled_usec"])}


def _quota(root: Path) -> dict[str, Any]:
    quota, period = (_cgroup(root) / "cpu.max").read_text().split()
    return {} if quota == "max" else {"cgroup_cpu_quota": int(quota) / int(period)}


def _allowed(root: Path) -> dict[str, Any]:
    status = _pairs(root / "proc/self/status", ":")
    return {"cpus_allowed": status["Cpus_allowed_list"], "mems_allowed": status["Mems_allowed_list"]}


def _numa(root: Path) -> dict[str, Any]:
    names = os.listdir(root / "sys/devices/system/node")  # noqa: PTH208 - closes what it opens
    return {"numa_nodes": sum(name.removeprefix("node").isdigit() for name in names)}


def _smt(root: Path) -> dict[str, Any]:
    return {"smt": (root / "sys/devices/system/cpu/smt/active").read_text().strip() == "1"}


def _governor(root: Path) -> dict[str, Any]:
    first = min(os.sched_getaffinity(0))
    path = root / f"sys/devices/system/cpu/cpu{first}/cpufreq/scaling_governor"
    return {"cpu_governor": path.read_text().strip()}


def _confidential(root: Path) -> dict[str, Any]:
    flags = _pairs(root / "proc/cpuinfo", ":").get("flags", "").split()
    found = next((name for name in GUESTS if name in flags or (root / f"dev/{name}").exists()), None)
    return {"confidential_vm": found} if found else {}


NOW: Readings = (
    _memory, _process, _usage, _load, _steal, _clock, _pressure("cpu"), _pressure("memory"),
    _cgroup_memory("memory.current", "cgroup_memory_current_mb"), _cgroup_events, _cgroup_cpu,
    _cgroup_memory("memory.high", "cgroup_memory_high_mb"), _cgroup_memory("memory.max", "cgroup_memory_max_mb"),
)  # fmt: skip
POSTURE: Readings = (_quota, _allowed, _numa, _smt, _governor, _confidential)
