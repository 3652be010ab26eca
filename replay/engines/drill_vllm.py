"""Serve the phases of a drill with vLLM: one engine in this process, driven by a client that keeps it busy.

Knows nothing of the recorder: it is recorded like any other program. Prefix caching is off: a hit is another history.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read at import: the engine core stays in this process

from transformers import AutoConfig, AutoTokenizer
from vllm import LLM, SamplingParams

from replay.engines.faults import in_words
from replay.workload import Workload, WorkloadError, in_tokens

if TYPE_CHECKING:
    from replay.workload import Turn

BLOCK = 32
"""Tokens of a KV block: the smallest that vLLM has on every platform."""
LAUNCH_TOKENS = 512


class Service:
    """An engine for the phases of one process, which share its pool and limits; and the prompts in tokens."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        try:
            context = AutoConfig.from_pretrained(workload.model).get_text_config().max_position_embeddings
            self.prompts = in_tokens(workload, AutoTokenizer.from_pretrained(workload.model), context)
            self.llm = self._engine(workload)
        except (OSError, ValueError, RuntimeError) as fault:
            raise WorkloadError(
                f"vLLM cannot serve {workload.model} ({in_words(fault)}); VLLM_LOGGING_LEVEL=INFO says more"
            ) from None
        self.sampling = SamplingParams(temperature=0, max_tokens=workload.max_tokens)

    def _engine(self, workload: Workload) -> Any:
        longest = max(map(len, self.prompts.values())) + workload.max_tokens
        room = max(workload.room(phase, self.prompts) for phase in workload.phases)
        rows = 1 if any(phase.one_at_a_time for phase in workload.phases) else workload.concurrency
        return LLM(
            workload.model, dtype=workload.dtype, enforce_eager=True, disable_log_stats=True,
            enable_prefix_caching=False, block_size=BLOCK, num_gpu_blocks_override=-(-room // BLOCK) + 2,
            max_model_len=longest, max_num_seqs=rows, max_num_batched_tokens=max(LAUNCH_TOKENS, rows),
        )  # fmt: skip

    def serve(self, turn: Turn) -> None:
        """Keep `in_flight` requests open until all were asked."""
        engine, open_requests = self.llm.llm_engine, 0
        while True:
            for req_id, prompt in turn.take(turn.phase.in_flight - open_requests):
                engine.add_request(req_id, {"prompt_token_ids": self.prompts[prompt]}, self.sampling)
                open_requests += 1
            if not open_requests:
                return
            open_requests -= sum(output.finished for output in engine.step())


def drive(workload: Workload) -> Service:
    """Serve every phase; return the service: an engine that goes away ends its recording."""
    service = Service(workload)
    for turn in workload.turns():
        service.serve(turn)
    return service
