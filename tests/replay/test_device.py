"""The device sampler: NVML through a stand-in, or a card where there is one; /proc of this machine; cgroup files."""

import inspect
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import pytest
from fake_nvml import CONSTANTS, Nvml
from from_log import read_log

from replay import device, nvml, procfs
from replay.device import Sampler
from replay.record import Recorder

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "schemas" / "device.v1.json").read_text())
CARD_FIELDS = {
    "gpu_index", "vram_free_mb", "vram_total_mb", "sm_clock_mhz", "mem_clock_mhz", "power_w", "temperature_c",
    "throttle_reasons", "gpu_utilization_pct",
}  # fmt: skip


def use(monkeypatch, *cards, **variables):
    """Put the stand-in in the place of pynvml, under a clean environment."""
    library = Nvml(*cards)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", device.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return library


def uuids():
    return [gpu.uuid for gpu in nvml.gpus()]


@pytest.fixture
def recorder(tmp_path):
    one = Recorder(tmp_path, "test")
    yield one
    one.close()


def written(recorder):
    recorder.close()
    return read_log(recorder.path.parent)


def keeps_the_contract(record):
    jsonschema.validate(record, SCHEMA)
    assert record.keys() <= SCHEMA["properties"].keys()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def sampling():
    return [thread for thread in threading.enumerate() if thread.name == "forensics-device"]


def test_a_card_says_all_that_nvml_has_in_the_contracts_units(monkeypatch, recorder):
    use(monkeypatch, {"uuid": "GPU-a"})
    Sampler(recorder, seconds=3600)
    sample = next(record for record in written(recorder) if record.get("gpu_uuid"))
    keeps_the_contract(sample)
    wanted = {
        "device_type": "cuda", "gpu_uuid": "GPU-a", "gpu_index": 0, "vram_free_mb": 102400.0, "vram_total_mb": 143360.0,
        "vram_used_mb": 38912.0, "vram_reserved_mb": 2048.0, "sm_clock_mhz": 1980, "mem_clock_mhz": 3201,
        "power_w": 699.5, "power_limit_w": 700.0, "temperature_c": 61, "pstate": 0, "gpu_utilization_pct": 97,
        "memory_utilization_pct": 41, "throttle_reasons": ["sw_power_cap", "hw_thermal_slowdown", "0x10000"],
        "ecc_corrected": 12, "ecc_uncorrected": 1, "remapped_rows_corrected": 3, "remapped_rows_uncorrected": 1,
        "remapped_rows_pending": True, "remapped_rows_failed": False, "pcie_rx_mb_s": 2.5, "pcie_tx_mb_s": 1.5,
        "pcie_gen": 4, "pcie_gen_max": 5, "pcie_width": 8, "pcie_width_max": 16, "pcie_replays": 2,
        "compute_processes": 2, "mps_processes": 0,
    }  # fmt: skip
    assert {name: sample.get(name) for name in wanted} == wanted
    of_the_cpu = procfs.sample().keys() | {"cgroup_memory_high_mb", "cgroup_memory_max_mb"}
    envelope = {"kind", "run_id", "replica_id", "rank", "ts", "seq", "writer", "clock_id", "mono_ns"}
    never_said = SCHEMA["properties"].keys() - sample.keys() - of_the_cpu - envelope
    assert {one for one in never_said if not one.startswith("cgroup")} == {"gpu_instance_id", "compute_instance_id"}


def test_every_field_is_read_on_its_own(monkeypatch, recorder):
    names = [name for name in vars(Nvml) if name.startswith("nvmlDeviceGet")]
    once = ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetName")
    library = use(monkeypatch, {"uuid": "GPU-a", "missing": tuple(names)})
    (gpu,) = nvml.gpus()
    assert gpu.sample() == {"gpu_uuid": "GPU-a", "device_type": "cuda"}
    assert {"nvmlDeviceGetClockInfo", "nvmlDeviceGetMPSComputeRunningProcesses"} <= set(library.asked)
    library.cards[0]["missing"] = ()
    full = gpu.sample()
    for name in [name for name in names if name not in once and "Mig" not in name and "InstanceId" not in name]:
        library.cards[0]["missing"] = (name,)
        left = gpu.sample() | gpu.posture()
        assert left.keys() < (full | {"mig": 0, "compute_mode": 0, "confidential": 0}).keys(), name
    library.cards[0]["missing"] = ()
    monkeypatch.delattr(Nvml, "nvmlDeviceGetPcieReplayCounter")  # an older library
    assert full.keys() - gpu.sample().keys() == {"pcie_replays"}


def test_a_lost_card_is_one_event_and_the_others_go_on(monkeypatch, recorder):
    library = use(monkeypatch, {"uuid": "GPU-a"}, {"uuid": "GPU-b"})
    Sampler(recorder, seconds=0.01)
    library.cards[0]["lost"] = True
    counted = library.asked.count
    wait_until(lambda: counted("nvmlDeviceGetMPSComputeRunningProcesses") > 8)
    records = written(recorder)
    lost = [record for record in records if record.get("what") == "device_lost"]
    assert [event["detail"] for event in lost] == [{"gpu_uuid": "GPU-a"}]
    after = [record.get("gpu_uuid") for record in records if record["seq"] > lost[0]["seq"]]
    assert "GPU-b" in after
    assert "GPU-a" not in after
    assert not [record for record in records if record.get("what") == "recorder_fault"]


TWO = ({"uuid": "GPU-aa"}, {"uuid": "GPU-bb"})


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa", "GPU-bb"]), ("", []), ("1", ["GPU-bb"]), ("1,0", ["GPU-bb", "GPU-aa"]), ("GPU-b", ["GPU-bb"]),
        ("0,-1,1", ["GPU-aa"]), ("0,GPU-zz,1", ["GPU-aa"]), ("7", []), (" 0 , 1 ", ["GPU-aa", "GPU-bb"]),
    ],
)  # fmt: skip
def test_the_cards_are_those_that_cuda_shows(monkeypatch, visible, expected):
    use(monkeypatch, *TWO, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))
    assert uuids() == expected


def test_where_cuda_may_count_differently_all_cards_are_sampled(monkeypatch):
    mixed = ({"uuid": "GPU-aa"}, {"uuid": "GPU-bb", "name": "T400"})
    use(monkeypatch, *mixed, CUDA_VISIBLE_DEVICES="0")
    assert uuids() == ["GPU-aa", "GPU-bb"]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert uuids() == ["GPU-aa"]
    use(monkeypatch, *mixed, CUDA_VISIBLE_DEVICES="GPU-bb")
    assert uuids() == ["GPU-bb"]


def test_a_mig_device_has_its_own_memory_and_its_cards_clocks(monkeypatch, recorder):
    cards = ({"uuid": "GPU-aa", "mig": [None, "MIG-1", "MIG-2"]}, {"uuid": "GPU-bb"})
    use(monkeypatch, *cards, CUDA_VISIBLE_DEVICES="MIG-2,1")
    sampler = Sampler(recorder, seconds=3600)
    mig, whole = (record for record in written(recorder) if record.get("gpu_uuid"))
    assert (mig["gpu_uuid"], whole["gpu_uuid"]) == ("MIG-2", "GPU-bb")
    assert (mig["gpu_index"], mig["gpu_instance_id"], mig["compute_instance_id"]) == (0, 2, 0)
    assert mig["vram_total_mb"] == 20480.0
    assert mig["sm_clock_mhz"] == 1980
    gpus = sampler.engine_fields({}, {})["isolation"]["gpus"]
    assert gpus == [{"mig": one, "compute_mode": "exclusive_process", "confidential": False} for one in (True, False)]
    use(monkeypatch, *cards)
    assert uuids() == ["MIG-1", "GPU-bb"]


def test_the_engine_record_says_what_is_observed_and_what_stays(monkeypatch, recorder):
    use(monkeypatch, {"uuid": "GPU-a", "missing": ("nvmlDeviceGetTotalEccErrors",)})
    fields = Sampler(recorder, seconds=3600).engine_fields({"step": ["row"]}, {"shared_batching": True})
    assert fields["driver"] == "580.95.05"
    assert fields["observes"]["step"] == ["row"]
    seen = set(fields["observes"]["device"])
    assert {"mem_available_mb", "sm_clock_mhz"} <= seen
    assert not {"ecc_corrected", "ecc_uncorrected"} & seen
    assert fields["isolation"]["shared_batching"] is True
    assert fields["isolation"]["cpus_allowed"]


def test_zero_switches_it_off_and_says_that_nothing_is_observed(monkeypatch, recorder):
    use(monkeypatch, {"uuid": "GPU-a"}, **{device.VARIABLE: "0"})
    before = sampling()
    fields = Sampler(recorder).engine_fields({}, {})
    assert sampling() == before
    assert fields["observes"] == {}
    assert not [record for record in written(recorder) if record["kind"] == "device"]


@pytest.mark.parametrize("text", ["often", "-1", "nan", "inf", "1s"])
def test_a_malformed_interval_is_said_and_the_default_taken(monkeypatch, capsys, text):
    monkeypatch.setenv(device.VARIABLE, text)
    assert device.configured_seconds() == device.DEFAULT_SECONDS
    said = capsys.readouterr().err
    assert device.VARIABLE in said
    assert text in said


def test_well_formed_intervals_are_silent(monkeypatch, capsys):
    for text, seconds in (("", 1.0), ("0", 0.0), ("0.25", 0.25), ("60", 60.0)):
        monkeypatch.setenv(device.VARIABLE, text)
        assert device.configured_seconds() == seconds
    assert not capsys.readouterr().err


def test_the_thread_samples_again_and_ends_with_the_recorder(monkeypatch, recorder):
    monkeypatch.setattr(device, "CLOSED_WITHIN_SECONDS", 0.01)
    use(monkeypatch)
    before = set(sampling())
    Sampler(recorder, seconds=0.02)
    (thread,) = set(sampling()) - before
    wait_until(lambda: recorder.flush() or recorder.path.read_text().count('"device"') > 3)
    assert thread.is_alive()
    recorder.close()
    wait_until(lambda: not thread.is_alive())
    dropped = recorder.totals.dropped
    time.sleep(0.1)
    assert recorder.totals.dropped == dropped


def test_a_fault_of_the_sampler_is_written_and_sampling_goes_on(monkeypatch, recorder):
    use(monkeypatch, {"uuid": "GPU-a"})

    def broken():
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(procfs, "sample", broken)
    Sampler(recorder, seconds=3600)
    records = written(recorder)
    assert [record["detail"]["fault"] for record in records if record.get("what") == "recorder_fault"] == [
        "RuntimeError: broken on purpose"
    ]
    assert [record["gpu_uuid"] for record in records if record["kind"] == "device"] == ["GPU-a"]


def test_without_nvml_the_host_is_sampled_and_a_driver_that_cannot_be_asked_is_on_record(
    monkeypatch, recorder, tmp_path
):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(device, "NVIDIA_DRIVER", tmp_path / "none")
    Sampler(recorder, seconds=3600)
    monkeypatch.setattr(device, "NVIDIA_DRIVER", tmp_path)
    Sampler(recorder, seconds=3600)
    records = written(recorder)
    assert [record["device_type"] for record in records if record["kind"] == "device"] == ["cpu", "cpu"]
    limits = [record["detail"]["not_observed"] for record in records if record.get("what") == "recorder_limits"]
    assert limits == [["device: no module pynvml: pip install nvidia-ml-py"]]


FORKS = """
import os, sys, threading
from pathlib import Path
from replay.device import Sampler
from replay.record import Recorder
Sampler(Recorder(Path(sys.argv[1]), "test"), seconds=0.01)
child = os.fork()
if child == 0:
    os._exit(sum(thread.name == "forensics-device" for thread in threading.enumerate()))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]),
      sum(thread.name == "forensics-device" for thread in threading.enumerate()))
"""


def test_a_forked_child_has_no_sampler(tmp_path):
    done = subprocess.run([sys.executable, "-c", FORKS, tmp_path], env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    assert done.stdout.split() == ["0", "1"]


def test_this_machines_proc_is_read(recorder):
    Sampler(recorder, seconds=3600)
    sample = next(record for record in written(recorder) if record.get("device_type") == "cpu")
    keeps_the_contract(sample)
    memory = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < sample["mem_available_mb"] <= int(memory["MemTotal:"]) / 1024
    assert 0 < sample["rss_mb"] < sample["mem_available_mb"] * 100
    assert {"swap_used_mb", "major_page_faults", "voluntary_ctxt_switches", "loadavg_1m", "cpu_steal_s"} <= set(sample)
    assert sample["nonvoluntary_ctxt_switches"] >= 0
    assert procfs.posture()["numa_nodes"] >= 1


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MOUNTS = "24 1 0:22 / /proc rw - proc proc rw\n30 24 0:26 {base} /sys/fs/cgroup rw shared:4 - cgroup2 cgroup rw\n"
CGROUP = {
    "memory.current": "2147483648\n", "memory.high": "max\n", "memory.max": "4294967296\n",
    "memory.events": "low 0\nhigh 3\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n",
    "cpu.stat": "usage_usec 9\nnr_periods 50\nnr_throttled 11\nthrottled_usec 123456\n", "cpu.max": "150000 100000\n",
}  # fmt: skip


@pytest.mark.parametrize(
    ("base", "group", "folder"),
    [("/", "/system.slice/serve.service", "system.slice/serve.service"), ("/docker/c1", "/docker/c1", "")],
)
def test_cgroup_v2_is_read_from_the_process_s_own_group(tmp_path, base, group, folder):
    files = {"proc/self/mountinfo": MOUNTS.format(base=base), "proc/self/cgroup": f"12:cpu:/\n0::{group}\n"}
    files |= {str(Path("sys/fs/cgroup") / folder / name): text for name, text in CGROUP.items()}
    root = tree(tmp_path, files)
    sample = procfs.sample(root)
    keeps_the_contract({"kind": "device", "ts": 0.0} | sample)
    assert {name: value for name, value in sample.items() if name.startswith("cgroup")} == {
        "cgroup_memory_current_mb": 2048.0, "cgroup_memory_max_mb": 4096.0, "cgroup_memory_high_events": 3,
        "cgroup_memory_max_events": 7, "cgroup_memory_oom_events": 2, "cgroup_memory_oom_kill_events": 1,
        "cgroup_nr_throttled": 11, "cgroup_throttled_us": 123456,
    }  # fmt: skip
    assert procfs.posture(root)["cgroup_cpu_quota"] == 1.5


def test_host_files_are_read_as_the_kernel_writes_them(tmp_path):
    mine = min(os.sched_getaffinity(0))
    cpus = "".join(f"processor\t: {n}\nflags\t\t: fpu sev_snp\ncpu MHz\t\t: {mhz}\n\n"
                   for n, mhz in ((mine, "2100.5"), (10_000, "400.0")))  # fmt: skip
    root = tree(tmp_path, {
        "proc/meminfo": "MemTotal: 100 kB\nMemAvailable:    2048 kB\nSwapTotal: 4096 kB\nSwapFree: 1024 kB\n",
        "proc/stat": "cpu  1 2 3 4 5 6 7 250 0 0\ncpu0 1 2 3 4 5 6 7 250 0 0\n", "proc/cpuinfo": cpus,
        "proc/loadavg": "3.25 1.0 0.5 2/300 99\n", "proc/self/statm": "900 256 1 1 0 1 0\n",
        "proc/pressure/cpu": "some avg10=12.50 avg60=0.12 avg300=0.28 total=1\nfull avg10=1 avg60=0 avg300=0 total=0\n",
        "proc/pressure/memory": "some avg10=0.75 avg60=0.05 avg300=0.20 total=5\n",
        "proc/self/status": "Name:\tx\nCpus_allowed_list:\t0-3,8\nMems_allowed_list:\t0\n",
        "sys/devices/system/node/node0/x": "", "sys/devices/system/node/node1/x": "",
        "sys/devices/system/cpu/smt/active": "1\n",
        f"sys/devices/system/cpu/cpu{mine}/cpufreq/scaling_governor": "powersave\n",
    })  # fmt: skip
    sample = procfs.sample(root)
    tick = os.sysconf("SC_CLK_TCK")
    wanted = {"mem_available_mb": 2.0, "swap_used_mb": 3.0, "cpu_steal_s": 250 / tick, "loadavg_1m": 3.25,
              "psi_cpu_some_avg10_pct": 12.5, "psi_memory_some_avg10_pct": 0.75, "cpu_clock_mhz": 2100.5,
              "cpu_clock_min_mhz": 2100.5}  # fmt: skip
    assert {name: sample[name] for name in wanted} == wanted
    assert math.isclose(sample["rss_mb"], 256 * os.sysconf("SC_PAGE_SIZE") / 2**20, abs_tol=1e-3)
    assert procfs.posture(root) == {
        "cpus_allowed": "0-3,8", "mems_allowed": "0", "numa_nodes": 2, "smt": True, "cpu_governor": "powersave",
        "confidential_vm": "sev_snp",
    }  # fmt: skip


def test_a_host_without_any_of_it_still_says_what_the_process_knows(tmp_path):
    assert procfs.sample(tmp_path).keys() == {
        "device_type", "major_page_faults", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches",
    }  # fmt: skip


def test_the_stand_in_has_the_librarys_names_and_values():
    real = pytest.importorskip("pynvml")
    for name, value in CONSTANTS.items():
        assert getattr(real, name) == value
    for name, function in vars(Nvml).items():
        if name.startswith("nvml"):
            mine = list(inspect.signature(function).parameters)[1:]
            assert mine == list(inspect.signature(getattr(real, name)).parameters), name
    fault = real.NVMLError(real.NVML_ERROR_GPU_IS_LOST)
    assert isinstance(fault, real.NVMLError)
    assert fault.value == real.NVML_ERROR_GPU_IS_LOST
    bits = {name.lower(): value for name, value in vars(real).items() if name.startswith("nvmlClocks")}
    for place, name in enumerate(nvml.CLOCK_EVENTS):
        flat = name.replace("_", "")
        assert 1 << place in {bits.get(f"nvmlclockseventreason{flat}"), bits.get(f"nvmlclocksthrottlereason{flat}")}


@pytest.mark.gpu
def test_a_real_card_answers(recorder):
    pytest.importorskip("pynvml")
    sampler = Sampler(recorder, seconds=3600)
    samples = [record for record in written(recorder) if record.get("gpu_uuid")]
    assert samples
    for sample in samples:
        keeps_the_contract(sample)
        assert CARD_FIELDS - sample.keys() == set()
        assert 0 < sample["vram_free_mb"] <= sample["vram_total_mb"]
        assert 0 < sample["temperature_c"] < 120
        assert not [name for name in sample["throttle_reasons"] if name.startswith("0x")]
    fields = sampler.engine_fields({}, {})
    assert fields["driver"]
    assert fields["isolation"]["gpus"][0]["compute_mode"] in nvml.COMPUTE_MODES
