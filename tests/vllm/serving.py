"""A stock vLLM OpenAI server for a test, in processes of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

QUIET = {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "FORENSICS_RECORD_COMPRESS": "none",  # compression has tests of its own
}  # fmt: skip


@contextlib.contextmanager
def server(model, folder, *flags, record=None, **environment):
    """Serve `model` as 'tiny' and yield the port; stopped as an orchestrator does. Logs go to folder/server.txt."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "tiny",
        "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "1024", "--host", "127.0.0.1", "--port", str(port),
        *flags,
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("FORENSICS_")} | QUIET | environment
    if record is not None:
        env["FORENSICS_RECORD"] = str(record)
    said = folder / "server.txt"
    with said.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_ready(process, port, said)
        yield port
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_ready(process, port, said):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise AssertionError("the server did not come up: " + said.read_text(errors="replace")[-3000:])


def lines_of(directory, stem=""):
    """Return the lines of all logs of a recording, or of those whose name begins with `stem`."""
    if directory is None or not Path(directory).is_dir():
        return []
    logs = sorted(Path(directory).glob(f"{stem}*.jsonl"))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def of(lines, kind, what=None):
    return [line for line in lines if line["kind"] == kind and (what is None or line["what"] == what)]
