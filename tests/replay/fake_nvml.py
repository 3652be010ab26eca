# ruff: noqa: N802, N803
"""A stand-in for pynvml with its names and signatures; a test holds it to the real one where that is installed."""

from types import SimpleNamespace

ERRORS = {"NOT_SUPPORTED": 3, "NOT_FOUND": 6, "FUNCTION_NOT_FOUND": 13, "GPU_IS_LOST": 15}
CONSTANTS = {
    "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0, "NVML_VOLATILE_ECC": 0,
    "NVML_MEMORY_ERROR_TYPE_CORRECTED": 0, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1, "NVML_PCIE_UTIL_TX_BYTES": 0,
    "NVML_PCIE_UTIL_RX_BYTES": 1, "NVML_DEVICE_MIG_ENABLE": 1, "NVML_CC_SYSTEM_FEATURE_ENABLED": 1,
    "nvmlMemory_v2": 0x02000028,
} | {f"NVML_ERROR_{name}": code for name, code in ERRORS.items()}  # fmt: skip
GIB = 1 << 30


class Nvml:
    """Cards are dicts: uuid, name, mig (list of uuids), lost, and `missing`: functions the card does not support."""

    class NVMLError(Exception):
        def __init__(self, value):
            super().__init__(f"NVML error {value}")
            self.value = value

    def __init__(self, *cards):
        self.cards = [{"name": "H200", "mig": [], "lost": False, "missing": ()} | card for card in cards]
        self.asked = []
        for name, value in CONSTANTS.items():
            setattr(self, name, value)

    def _ask(self, device, name, answer):
        card = device.get("card", device)
        self.asked.append(name)
        if card["lost"]:
            raise self.NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        if name in card["missing"]:
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return answer

    def nvmlInit(self):
        return None

    def nvmlSystemGetDriverVersion(self):
        return "580.95.05"

    def nvmlSystemGetConfComputeState(self):
        return SimpleNamespace(ccFeature=0)

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.cards[index]

    def nvmlDeviceGetName(self, handle):
        return handle["name"]

    def nvmlDeviceGetUUID(self, handle):
        return handle["uuid"]

    def nvmlDeviceGetIndex(self, handle):
        return self._ask(handle, "nvmlDeviceGetIndex", self.cards.index(handle))

    def nvmlDeviceGetMaxMigDeviceCount(self, device):
        return 7 if device["mig"] else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index):
        if index >= len(device["mig"]) or device["mig"][index] is None:
            raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)
        return {"uuid": device["mig"][index], "card": device, "instance": index}

    def nvmlDeviceGetMigMode(self, device):
        return [int(bool(device["mig"]))] * 2

    def nvmlDeviceGetGpuInstanceId(self, device):
        if "instance" not in device:
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return device["instance"]

    def nvmlDeviceGetComputeInstanceId(self, device):
        return self.nvmlDeviceGetGpuInstanceId(device) * 0

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        share = 7 if "instance" in handle else 1
        sizes = {"total": 140 * GIB // share, "free": 100 * GIB // share, "used": 40 * GIB // share}
        if version:
            assert version == self.nvmlMemory_v2
            sizes |= {"used": 38 * GIB // share, "reserved": 2 * GIB // share}
        return self._ask(handle, "nvmlDeviceGetMemoryInfo", SimpleNamespace(**sizes))

    def nvmlDeviceGetClockInfo(self, handle, type):
        return self._ask(handle, "nvmlDeviceGetClockInfo", {1: 1980, 2: 3201}[type])

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._ask(handle, "nvmlDeviceGetPowerUsage", 699_500)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return self._ask(handle, "nvmlDeviceGetEnforcedPowerLimit", 700_000)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return self._ask(handle, "nvmlDeviceGetTemperature", 61 + sensor)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return self._ask(handle, "nvmlDeviceGetCurrentClocksEventReasons", 0x4 | 0x40 | 0x10000)

    def nvmlDeviceGetPerformanceState(self, handle):
        return self._ask(handle, "nvmlDeviceGetPerformanceState", 0)

    def nvmlDeviceGetUtilizationRates(self, handle):
        return self._ask(handle, "nvmlDeviceGetUtilizationRates", SimpleNamespace(gpu=97, memory=41))

    def nvmlDeviceGetTotalEccErrors(self, handle, errorType, counterType):
        assert counterType == self.NVML_VOLATILE_ECC
        return self._ask(handle, "nvmlDeviceGetTotalEccErrors", [12, 1][errorType])

    def nvmlDeviceGetRemappedRows(self, device):
        return self._ask(device, "nvmlDeviceGetRemappedRows", (3, 1, 1, 0))

    def nvmlDeviceGetPcieThroughput(self, device, counter):
        return self._ask(device, "nvmlDeviceGetPcieThroughput", [1_500, 2_500][counter])

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle):
        return self._ask(handle, "nvmlDeviceGetCurrPcieLinkGeneration", 4)

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle):
        return self._ask(handle, "nvmlDeviceGetMaxPcieLinkGeneration", 5)

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle):
        return self._ask(handle, "nvmlDeviceGetCurrPcieLinkWidth", 8)

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle):
        return self._ask(handle, "nvmlDeviceGetMaxPcieLinkWidth", 16)

    def nvmlDeviceGetPcieReplayCounter(self, handle):
        return self._ask(handle, "nvmlDeviceGetPcieReplayCounter", 2)

    def nvmlDeviceGetComputeMode(self, handle):
        return self._ask(handle, "nvmlDeviceGetComputeMode", 3)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self._ask(handle, "nvmlDeviceGetComputeRunningProcesses", [object(), object()])

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle):
        return self._ask(handle, "nvmlDeviceGetMPSComputeRunningProcesses", [])
