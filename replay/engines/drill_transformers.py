"""Serve the phases of a drill with transformers: static left-padded batches, or its continuous batching.

Knows nothing of the recorder but how to name requests: it is recorded like any other program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

from replay.engines.faults import in_words
from replay.engines.transformers_record import request_ids
from replay.workload import Workload, WorkloadError, in_tokens

if TYPE_CHECKING:
    from replay.workload import Turn

PAGE = 16
"""Tokens of a KV block: small, so that a pool can be a little too small."""
LAUNCH_TOKENS = 512
WAIT_SECONDS = 0.5


class Service:
    """A model with its tokenizer, and the prompts of the drill in tokens."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.model, tokenizer = _load(workload.model, workload.dtype)
        text = self.model.config.get_text_config()
        self.prompts = in_tokens(workload, tokenizer, text.max_position_embeddings)
        self.pad = 0 if text.pad_token_id is None else int(text.pad_token_id)
        self.generation = GenerationConfig(
            do_sample=False, max_new_tokens=workload.max_tokens, pad_token_id=self.pad,
            eos_token_id=self.model.generation_config.eos_token_id,
        )  # fmt: skip

    def static(self, turn: Turn) -> None:
        """Serve batch after batch, each padded to its longest prompt."""
        size = 1 if turn.phase.one_at_a_time else turn.phase.in_flight
        while together := turn.take(size):
            rows = [self.prompts[prompt] for _, prompt in together]
            width = max(map(len, rows))
            ids = [[self.pad] * (width - len(row)) + row for row in rows]
            mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
            device = self.model.device
            with request_ids([req_id for req_id, _ in together]):
                self.model.generate(
                    torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device),
                    generation_config=self.generation,
                )  # fmt: skip

    def continuous(self, turn: Turn) -> None:
        """Keep `in_flight` requests open until all were asked; prefix sharing is off: a hit is another history."""
        room = self.workload.room(turn.phase, self.prompts)
        config = ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=-(-room // PAGE) + 2, max_batch_tokens=LAUNCH_TOKENS, allow_block_sharing=False,
            max_requests_per_batch=1 if turn.phase.one_at_a_time else None,
        )  # fmt: skip
        manager = self.model.init_continuous_batching(self.generation, config)
        manager.start()
        served = False
        try:
            self._keep_busy(manager, turn)
            served = True
        finally:
            manager.stop(hard_stop=not served)
            manager.destroy()

    def _keep_busy(self, manager: Any, turn: Turn) -> None:
        open_requests = 0
        while True:
            for req_id, prompt in turn.take(turn.phase.in_flight - open_requests):
                manager.add_request(self.prompts[prompt], request_id=req_id)
                open_requests += 1
            if not open_requests:
                return
            done = manager.get_result(timeout=WAIT_SECONDS)
            open_requests -= done is not None
            if done is not None and done.error is not None:
                raise WorkloadError(f"the engine gave up {done.request_id}: {done.error}")
            if not manager.is_running():
                raise WorkloadError(f"the engine stopped: {manager.background_thread_status.fatal_error}")


def _load(path: str, dtype: str) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a folder of safetensors, without remote code. Raises WorkloadError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as fault:
        raise WorkloadError(f"no model can be loaded from {path} ({in_words(fault)})") from None
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def drive(workload: Workload) -> Service:
    """Serve every phase; return the service: a model that goes away ends its recording."""
    service = Service(workload)
    serve = service.static if workload.engine == "transformers" else service.continuous
    for turn in workload.turns():
        serve(turn)
    return service
