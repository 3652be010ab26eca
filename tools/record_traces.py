"""Record the traces of fixtures/traces on this machine: what other tools write of a cause that is known.

gloo-slow-rank: four processes reduce and gather over Gloo, and from step 3 on rank 2 computes 30 ms longer. Written by
torch.profiler and by PyTorch's flight recorder, both as pickle and as JSON. tiny-llama-verbose: one process generates
with the tiny model under our recorder, while oneDNN and MKL print every call.

    PYTHONPATH=. python tools/record_traces.py fixtures/traces
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing

ROOT = Path(__file__).resolve().parents[1]
RANKS, STEPS, SLOW_RANK, SLOW_FROM, SLOW_SECONDS = 4, 6, 2, 3, 0.03
PORT = "29617"


def worker(rank: int, out: str) -> None:
    """Be one rank: profile the steps, and dump the flight recorder at the end."""
    from torch import distributed
    from torch._C import _distributed_c10d as recorder
    from torch.profiler import ProfilerActivity, profile, record_function

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
    distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    shard, parts = torch.ones(1024), [torch.empty(1024) for _ in range(RANKS)]
    distributed.all_reduce(shard)  # the first one connects
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        for step in range(STEPS):
            with record_function(f"engine_step={step}"):
                if rank == SLOW_RANK and step >= SLOW_FROM:
                    time.sleep(SLOW_SECONDS)
                distributed.all_reduce(shard)
                distributed.all_gather(parts, shard)
    distributed.barrier()
    profiled.export_chrome_trace(f"{out}/rank_{rank}.pt.trace.json")
    Path(out, f"nccl_trace_rank_{rank}").write_bytes(recorder._dump_fr_trace(includeStackTraces=False))
    Path(out, f"nccl_trace_rank_{rank}.json").write_bytes(recorder._dump_fr_trace_json())
    distributed.destroy_process_group()


def gloo(out: Path) -> None:
    """Run the ranks. Traces lose the host's name and are packed; of the JSON dumps one is kept, to show the form."""
    with tempfile.TemporaryDirectory() as name:
        torch.multiprocessing.spawn(worker, args=(name,), nprocs=RANKS)
        for trace in sorted(Path(name).glob("*.pt.trace.json")):
            nameless = re.sub(r'"host_name": "[^"]*"', '"host_name": "host"', trace.read_text())
            write_packed(out / f"{trace.name}.gz", nameless.replace(name, "out").encode())
        for dump in [*Path(name).glob("nccl_trace_rank_?"), Path(name, "nccl_trace_rank_0.json")]:
            (out / dump.name).write_bytes(dump.read_bytes())


def generate(log: Path) -> None:
    """Generate in bf16 under the recorder: a prompt alone, and two in a batch."""
    from transformers import AutoModelForCausalLM

    from replay.engines.transformers import install

    os.environ["FORENSICS_RECORD_COMPRESS"] = "none"
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained("fixtures/models/tiny-llama", dtype=torch.bfloat16).eval()
    stop = install(log)
    try:
        for rows in (1, 2):
            model.generate(torch.arange(5, 5 + 8 * rows).reshape(rows, 8), max_new_tokens=3, do_sample=False)
    finally:
        stop()


def verbose(out: Path) -> None:
    """Run `generate` in a process of its own, whose output is the library log."""
    with tempfile.TemporaryDirectory() as name:
        asked = {"ONEDNN_VERBOSE": "1", "ONEDNN_VERBOSE_TIMESTAMP": "1", "MKL_VERBOSE": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, "--generate", name]
        done = subprocess.run(command, env=os.environ | asked, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        write_packed(out / "server.log.gz", done.stdout)
        (log,) = Path(name).glob("*.jsonl")
        write_packed(out / "run.jsonl.gz", log.read_bytes())


def write_packed(path: Path, content: bytes) -> None:
    """Write gzip without a time stamp."""
    with gzip.GzipFile(path, "wb", mtime=0) as target:
        target.write(content)


def main() -> None:
    """Record both into folders under `out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        generate(options.out)
        return
    for name, record in (("gloo-slow-rank", gloo), ("tiny-llama-verbose", verbose)):
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        record(folder)


if __name__ == "__main__":
    main()
