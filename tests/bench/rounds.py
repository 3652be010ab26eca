"""Serve the same batch again and again when told so: one arm of a measurement, in a process of its own.

    python rounds.py ENGINE MODEL BATCH       ENGINE: transformers or vllm

Reads how many batches to serve, a number a line; answers with {"wall", "cpu"} in seconds. Knows nothing of a recorder:
that is switched on from outside or not. The CPU time includes a pause in which a writer thread finishes its work.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT_TOKENS, NEW_TOKENS = 32, 48
PAUSE_SECONDS = 0.5


def prompts(batch: int) -> list[list[int]]:
    """Return prompts of equal length, ids that any vocabulary has."""
    return [[(7 * row + 3 * at) % 200 + 5 for at in range(PROMPT_TOKENS)] for row in range(batch)]


def transformers(model: str, batch: int) -> Callable[[], object]:
    """Return a function that serves one static batch."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    ids = torch.tensor(prompts(batch))
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    return lambda: loaded.generate(ids, max_new_tokens=NEW_TOKENS, **options)


def vllm(model: str, batch: int) -> Callable[[], object]:
    """Return a function that serves one batch through a vLLM engine in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    engine = LLM(
        model, dtype="bfloat16", enforce_eager=True, max_model_len=256, max_num_seqs=batch, disable_log_stats=True,
        enable_prefix_caching=False,
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    batches = [{"prompt_token_ids": ids} for ids in prompts(batch)]
    return lambda: engine.generate(batches, params, use_tqdm=False)


def main() -> None:
    """Warm up, say so, then serve what is asked for."""
    engine, model, batch = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")  # engines print to stdout
    os.dup2(2, 1)
    serve = {"transformers": transformers, "vllm": vllm}[engine](model, int(batch))
    start = time.perf_counter()
    serve()
    serve()
    print(json.dumps({"wall": (time.perf_counter() - start) / 2}), file=answers, flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            serve()
        wall = time.perf_counter() - wall
        time.sleep(PAUSE_SECONDS)
        print(json.dumps({"wall": wall, "cpu": time.process_time() - cpu}), file=answers, flush=True)


if __name__ == "__main__":
    main()
