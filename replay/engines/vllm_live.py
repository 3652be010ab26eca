"""A running vLLM engine core that is driven by hand: admit, step, read back through the recorder's hooks, empty it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.coverage import PLAIN
from replay.engines import vllm_core
from replay.engines import vllm_records as records
from replay.engines.faults import out_of_memory
from replay.engines.vllm_built import built
from replay.engines.vllm_forced import FORCED, ForcedAnswer
from replay.engines.vllm_kv import KvPool
from replay.engines.vllm_notes import Notes
from replay.engines.vllm_observer import Observer
from replay.engines.vllm_rebuild import build
from replay.engines.vllm_worker import wrap
from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay.case import Asked, Order

LIMITS = {"max_num_batched_tokens": "max_num_scheduled_tokens", "max_num_seqs": "max_num_running_reqs",
          "max_num_active_seqs": "max_num_active_reqs"}  # fmt: skip
"""Limit as recorded → attribute of the scheduler that holds it."""


class Live:
    """One engine core. `notes`: what its hooks saw since `empty`; `hidden_dtype`: of what reached the output head."""

    def __init__(self, given: dict[str, Any], model_path: str) -> None:
        try:
            self.core = build(given | {"logits_processors": [ForcedAnswer]})
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as fault:
            if out_of_memory(fault):
                raise
            lines = str(fault).strip().splitlines() or [type(fault).__name__]
            raise Unpinnable(f"vLLM does not build this engine: {lines[0]}") from None
        self.scheduler, self.config = self.core.scheduler, self.core.vllm_config
        self.notes = Notes()
        self.hidden_dtype: str | None = None
        workers, blind = vllm_core.attach_workers(self.core)
        kv = records.kv_fields(self.scheduler.kv_cache_config, self.config.cache_config.block_size)
        notes: Any = self.notes
        graph = records.configured_graph_mode(self.config)
        self.observer = Observer(self.scheduler, notes, KvPool(self.scheduler, notes, kv), graph_mode=graph, threads=0)
        _, missing = vllm_core.attach_scheduler(self.core, self.observer)
        first = workers[0] if workers else {}
        if missing or not first.get("logits_sha256") or not first.get("top_logits"):
            raise Unpinnable(f"this vLLM cannot be read back: {blind or '; '.join(missing) or 'no compute_logits'}")
        runner = self.core.model_executor.driver_worker.worker.model_runner
        self._model = runner.model
        wrap(self._model, "compute_logits", before=self._head)
        self._eos = _eos_token_id(model_path)
        self._generation = self.config.model_config.try_get_generation_config()
        self.limits = dict(self.observer.limits)

    def _head(self, hidden: Any, *_: Any, **__: Any) -> None:
        self.hidden_dtype = str(hidden.dtype).removeprefix("torch.")

    def built(self) -> dict[str, str | None]:
        """Return what layers and caches show of the settings that a plan may name."""
        return built(self.config, self._model)

    @property
    def pool(self) -> Any:
        """Return the block pool of the KV cache."""
        return self.scheduler.kv_cache_manager.block_pool

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens that the model knows."""
        return int(self.config.model_config.get_vocab_size())

    def admit(self, asked: Asked, ids: Sequence[int], *, forced: Sequence[int] = (), by_length: bool = False) -> None:
        """Give a request to the scheduler. by_length: its answer matters by its length alone, whatever its tokens."""
        from vllm.v1.request import Request

        self.scheduler.add_request(
            Request(
                request_id=asked.req_id,
                prompt_token_ids=list(ids),
                sampling_params=self._bare(asked, forced) if by_length else self._params(asked),
                pooling_params=None,
                arrival_time=asked.arrival_ts,
                priority=asked.priority,
                cache_salt=asked.cache_salt,
                block_hasher=self.core.request_block_hasher,
            )
        )

    def _params(self, asked: Asked) -> Any:
        from vllm import SamplingParams

        params = SamplingParams(**{name: value for name, value in asked.decode_cfg.items() if name in PLAIN})
        params.update_from_generation_config(self._generation, self._eos)
        return params

    def _bare(self, asked: Asked, forced: Sequence[int]) -> Any:
        from vllm import SamplingParams

        ended = asked.finish_reason in ("stop", "length") and asked.output_tokens
        longest = asked.output_tokens if ended else asked.decode_cfg.get("max_tokens")
        room = self.config.model_config.max_model_len - asked.tokens
        extra = {FORCED: list(forced)} if forced else None
        return SamplingParams(temperature=0, max_tokens=longest or max(room, 1), ignore_eos=True, extra_args=extra)

    def order(self, order: Order) -> None:
        """Do to the engine what reached it from outside."""
        if order.what == "abort":
            self.core.abort_requests([order.detail["req_id"]])
        elif order.what == "prefix_cache_reset":
            self.core.reset_prefix_cache(reset_running_requests=bool(order.detail.get("reset_running_requests")))
        else:
            for name, (_, now) in (order.detail.get("changed") or {}).items():
                if name not in LIMITS.keys() & self.limits.keys():
                    raise Unpinnable(f"engine.orders: the limit {name} cannot be changed in a running engine")
                setattr(self.scheduler, LIMITS[name], now)

    def empty(self) -> None:
        """Let everybody go, forget what was seen, and leave a cold prefix cache and the limits of the start."""
        self.core.abort_requests(list(self.scheduler.requests))
        while self.scheduler.has_requests():
            self.core.step()
        for name in LIMITS.keys() & self.limits.keys():
            setattr(self.scheduler, LIMITS[name], self.limits[name])
        if self.pool.enable_caching and not self.scheduler.reset_prefix_cache():
            raise RuntimeError("the prefix cache of an idle engine could not be emptied")
        self.observer.limits = dict(self.limits)
        self.observer.engine_step = 0
        self.notes.clear()

    def shutdown(self) -> None:
        """End the engine, so that another one can be built in this process."""
        self.core.shutdown()


def _eos_token_id(model_path: str) -> int | None:
    """Return the id that the model's tokenizer ends a text with, as vLLM's API process asks it."""
    from transformers import AutoTokenizer

    try:
        found: int | None = AutoTokenizer.from_pretrained(model_path).eos_token_id
    except (OSError, ValueError):
        return None
    return found
