"""Record an incident of a tensor-parallel engine: four Gloo ranks, continuous batching, and one rank that stalls.

The loop holds a promise of its step time: after two steps above --slo-ms it halves the rows of a launch, and doubles
them again after six below it. Requests arrive before set engine steps, so nothing but step time changes who shares
a launch. Runs: calm, twice; the same requests while one rank stalls; the same while the wire is slow.

    python tools/record_gloo_incident.py fixtures/models/tiny-llama fixtures/incidents/gloo-straggler/log
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import socket
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from gloo_ranks import Collectives, Fault, Row, SplitModel
from record_tiny_incident import keep
from train_tiny_model import held_out_prompts
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from replay.host import arithmetic_environment, library_versions, model_digests, torch_facts
from replay.policy import Policy
from replay.record import Recorder, batch_fingerprint, token_ids_sha256
from replay.writer import Writer

RANKS, MOST_ROWS, FEWEST_ROWS, LATE, CALM = 4, 8, 2, 2, 6
REQUESTS, EVERY, NEW_TOKENS, TOP = 16, 3, 24, 4
"""A request arrives every three engine steps and wants so many tokens: eight are alive at a time."""
KV_BLOCKS, KV_BLOCK = 256, 16
"""The pool, and tokens of a block; a request takes the blocks of its whole life when it is admitted."""
RULE = {"token_rule": "argmax"}
STALL = (24, 48)
"""Engine steps in which the fault is on."""


@dataclass
class Request:
    """One request on its way. tokens: chosen so far; steps: launches that it was part of."""

    req_id: str
    prompt: list[int]
    arrival_step: int
    arrival_ts: float = 0.0
    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    computed: int = 0

    @property
    def blocks(self) -> int:
        """Return how many KV blocks its whole life takes."""
        return -(-(len(self.prompt) + NEW_TOKENS) // KV_BLOCK)

    def row(self) -> Row:
        """Return what is left to compute of it."""
        return Row(self.req_id, (self.prompt + self.tokens)[self.computed :], self.computed)


class Limit:
    """Rows that a launch may have: halved after LATE steps in a row above the promise, doubled after CALM below it."""

    def __init__(self, slo_ms: float, log: Recorder) -> None:
        self.rows, self._slo_ms, self._late, self._calm, self._log = MOST_ROWS, slo_ms, 0, 0, log

    def after(self, engine_step: int, step_ms: float) -> None:
        """Take in the time of a step; a change is an event of the step before which it holds."""
        late = step_ms > self._slo_ms
        self._late, self._calm = (self._late + 1, 0) if late else (0, self._calm + 1)
        wanted = self.rows
        if self._late >= LATE:
            wanted, self._late = max(FEWEST_ROWS, self.rows // 2), 0
        elif self._calm >= CALM:
            wanted, self._calm = min(MOST_ROWS, self.rows * 2), 0
        if wanted != self.rows:
            detail = {"limit": "rows", "before": self.rows, "after": wanted, "step_ms": round(step_ms, 3)}
            self._log.write("event", engine_step=engine_step + 1, rank=0, what="batch_limit_change", detail=detail)
            self.rows = wanted


def serve(log: Recorder, options: argparse.Namespace, fault: Fault, prompts: list[list[int]]) -> None:
    """Run the loop on rank 0: compose a launch, send it to all ranks, take the highest logits."""
    wire = Collectives(log, fault)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    split, limit = SplitModel(model, wire), Limit(options.slo_ms, log)
    write_engine(log, model, options)
    due = deque(Request(f"{options.name}-{n}", ids, n * EVERY) for n, ids in enumerate(prompts))
    waiting: deque[Request] = deque()
    alive: list[Request] = []
    step = 0
    while due or waiting or alive:
        while due and due[0].arrival_step <= step:
            due[0].arrival_ts = time.time()
            waiting.append(due.popleft())
        free = KV_BLOCKS - sum(one.blocks for one in alive)
        while waiting and len(alive) < limit.rows and waiting[0].blocks <= free:
            free -= waiting[0].blocks
            alive.append(waiting.popleft())
        rows = alive[: limit.rows]
        state = {
            "queue_depth": len(waiting) + len(alive) - len(rows),
            "kv_blocks_free": free, "kv_blocks_total": KV_BLOCKS,
        }  # fmt: skip
        ts = time.time()
        launch = [one.row() for one in rows]
        logits, step_ms = run_step(split, wire, log, step, launch, state)
        for at, (request, row) in enumerate(zip(rows, launch, strict=True)):
            take(log, request, row, logits[at], {"engine_step": step, "row": at, "ts": ts}, len(rows))
            if len(request.tokens) == NEW_TOKENS or request.tokens[-1] == model.config.eos_token_id:
                alive.remove(request)
                split.forget(request.req_id)
                finish(log, request)
        limit.after(step, step_ms)
        step += 1
    dist.broadcast_object_list([None, step], src=0)


def run_step(
    split: SplitModel, wire: Collectives, log: Writer, step: int, launch: list[Row], state: dict[str, int]
) -> tuple[torch.Tensor, float]:
    """Run one launch on this rank and write its batch record; return logits and milliseconds.

    state: what the scheduler knows, on rank 0.
    """
    if wire.rank == 0:
        dist.broadcast_object_list([launch, step], src=0)
    ts, start = time.time(), time.perf_counter()
    wire.begin(step)
    logits = split.step(launch)
    step_ms = (time.perf_counter() - start) * 1000
    tokens = sum(len(row.ids) for row in launch)
    log.write(
        "batch", engine_step=step, rank=wire.rank, ts=ts, batch_size=len(launch), batch_tokens=tokens,
        padded_tokens=tokens, graph_mode="eager", paging_on=False, step_ms=round(step_ms, 4), **state,
        batch_fp=batch_fingerprint((row.req_id, len(row.ids), row.computed) for row in launch),
        plan={"batch.rows": str(len(launch)), "cpu.threads": "1"},
    )  # fmt: skip
    return logits, step_ms


def take(log: Recorder, request: Request, row: Row, logits: torch.Tensor, where: dict[str, Any], size: int) -> None:
    """Choose the highest logit, and write the step record."""
    values, ids = logits.topk(TOP)
    token = int(logits.argmax())
    queue_ms = (
        round((where["ts"] - request.arrival_ts) * 1000, 4) if request.steps == 0 and request.arrival_ts else None
    )
    log.write(
        "step", req_id=request.req_id, step=request.steps, rank=0, token_index=len(request.tokens), token_id=token,
        num_scheduled_tokens=len(row.ids), num_computed_tokens=row.computed, queue_ms=queue_ms, preempted=False,
        resumed=False, top_token_ids=ids.tolist(), top_logits=values.float().tolist(),
        margin=float(values[0].float() - values[1].float()), logit_dtype="bfloat16", batch_size=size,
        logits_sha256=hashlib.sha256(logits.view(torch.int16).numpy().tobytes()).hexdigest(), **where,
    )  # fmt: skip
    request.tokens.append(token)
    request.steps += 1
    request.computed += len(row.ids)


def finish(log: Recorder, request: Request) -> None:
    """Write the request record."""
    log.write(
        "request", req_id=request.req_id, arrival_ts=request.arrival_ts or None, arrival_step=request.arrival_step,
        effective_token_ids=request.prompt, effective_token_ids_sha256=token_ids_sha256(request.prompt),
        effective_tokens=len(request.prompt), truncated=False, prefix_cache_used=False,
        decode_cfg_applied={"temperature": 0, "max_tokens": NEW_TOKENS}, isolation_mode="shared", **RULE,
        output_token_ids=request.tokens, output_token_ids_sha256=token_ids_sha256(request.tokens),
        output_tokens=len(request.tokens), finish_reason="length" if len(request.tokens) == NEW_TOKENS else "stop",
    )  # fmt: skip


def write_engine(log: Recorder, model: Any, options: argparse.Namespace) -> None:
    """Write the engine record; the weights are hashed before the first request."""
    config, versions = model.config, library_versions()
    log.write(
        "engine", **torch_facts(), engine="gloo_loop", engine_version="1", versions=versions,
        environment=arithmetic_environment(), model_id="fixtures/models/tiny-llama", dtype="bfloat16",
        **model_digests(options.model, options.model), quantization="none", tp_size=RANKS, pp_size=1, dp_size=1,
        num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads, head_size=config.head_dim, hidden_size=config.hidden_size,
        vocab_size=config.vocab_size, kv_blocks_total=KV_BLOCKS, kv_block_size=KV_BLOCK, graph_mode="eager",
        token_tag_key_id=log.tag_key_id,
        isolation={"cross_tenant_batching": True},
        scheduler_limits={"rows": MOST_ROWS, "fewest_rows": FEWEST_ROWS, "slo_ms": options.slo_ms},
        observes={"step": ["preempted", "resumed"], "batch": ["paging_on"], "event": ["batch_limit_change"]},
    )  # fmt: skip


def follow(log: Writer, options: argparse.Namespace, fault: Fault) -> None:
    """Run the launches that rank 0 sends, until it sends none."""
    wire = Collectives(log, fault)
    split = SplitModel(AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval(), wire)
    while True:
        sent: list[Any] = [None, None]
        dist.broadcast_object_list(sent, src=0)
        launch, step = sent
        if launch is None:
            return
        run_step(split, wire, log, step, launch, {})


def rank_main(rank: int, port: int, folder: Path, options: argparse.Namespace, fault: Fault) -> None:
    """Be one rank: rank 0 opens the run, the others write into files of their own under its name."""
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    prompts = held_out_prompts(options.model)[options.start : options.start + REQUESTS]
    if rank == 0:
        log: Writer = Recorder(folder, "gloo", with_ids=True, replica_id="gloo-tp4", policy=Policy())
        name = [log.run_id]
    else:
        name = [None]
    dist.broadcast_object_list(name, src=0)
    if rank == 0:
        serve(log, options, fault, prompts)
    else:
        identity = {"run_id": str(name[0]), "replica_id": "gloo-tp4"}
        log = Writer(folder, f"{name[0]}-rank{rank}", identity, Policy(), time.time_ns())
        follow(log, options, fault)
    log.close()
    dist.destroy_process_group()


def record(folder: Path, name: str, options: argparse.Namespace, fault: Fault) -> None:
    """Serve all requests once, in fresh processes, into a log in `folder`; requests are called NAME-0, NAME-1, …"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = argparse.Namespace(**vars(options) | {"name": name})
    mp.spawn(rank_main, (port, folder, options, fault), nprocs=RANKS)


def outputs(folder: Path, name: str) -> dict[str, list[int]]:
    """Return {number of the request: output} of one run."""
    records = (json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines())
    found = [one for one in records if one["kind"] == "request" and one["req_id"].startswith(f"{name}-")]
    return {one["req_id"].rpartition("-")[2]: one["output_token_ids"] for one in found}


def cuts(folder: Path) -> list[int]:
    """Return the engine steps before which the limit of rows was cut, in the log of one run."""
    records = (json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines())
    return [one["engine_step"] for one in records if one.get("what") == "batch_limit_change"]


def main() -> None:
    """Record the runs; a calm one in which the machine itself broke the promise is recorded again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--slo-ms", type=float, default=300.0, help="promised time of a step")
    parser.add_argument("--stall-ms", type=float, default=100.0, help="stall of a rank before each all_reduce")
    parser.add_argument("--start", type=int, default=0, help="first of the held-out prompts")
    parser.add_argument("--tries", type=int, default=5, help="recordings of a calm run")
    options = parser.parse_args()
    logging.disable_progress_bar()
    runs = {
        "calm1": Fault(), "calm2": Fault(), "stall": Fault("straggler", 2, options.stall_ms, *STALL),
        "link": Fault("link", 0, options.stall_ms, *STALL),
    }  # fmt: skip
    given: dict[str, dict[str, list[int]]] = {}
    with tempfile.TemporaryDirectory() as kept:
        for name, fault in runs.items():
            given[name] = recorded(Path(kept), name, options, fault)
            flipped = sorted(number for number, tokens in given[name].items() if tokens != given["calm1"][number])
            print(f"{name}: other answers than calm1: {flipped or 'none'}", flush=True)
        if given["calm1"] != given["calm2"]:
            raise SystemExit("two calm runs differ: this machine does not repeat itself, so no stall is to blame")
        keep(Path(kept), options.log)


def recorded(kept: Path, name: str, options: argparse.Namespace, fault: Fault) -> dict[str, list[int]]:
    """Record one run in which nothing but the fault broke the promise; return its outputs."""
    for _ in range(options.tries):
        with tempfile.TemporaryDirectory() as folder:
            record(Path(folder), name, options, fault)
            changed = cuts(Path(folder))
            print(f"{name}: the limit changed before steps {changed or 'none'}", flush=True)
            if not [step for step in changed if fault.what == "none" or step <= fault.first]:
                for path in Path(folder).glob("*.jsonl"):
                    shutil.copy(path, kept)
                return outputs(kept, name)
    raise SystemExit(f"{name}: this machine broke the promise of {options.slo_ms} ms by itself; try a longer one")


if __name__ == "__main__":
    main()
