"""Run a request again under a plan, in static padded batches of transformers; and `install`, the recorder.

`python -m replay.engines.transformers` is the child of replay/trial.py: one JSON job on stdin, JSON lines out.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch

from replay.case import Case, CaseError, Plan
from replay.casefile import case_from
from replay.engines.transformers_facts import dtype_name
from replay.engines.transformers_hooks import Call, Launch, row_sha256, top_logits
from replay.engines.transformers_hooks import install as watch
from replay.engines.transformers_launch import PaddedBatch, build
from replay.engines.transformers_record import install, plan_facts, request_ids
from replay.factors import Evidence, Setup, Unpinnable, factor
from replay.host import facts, torch_facts
from replay.trial import OUT_OF_MEMORY, Trace

__all__ = ["Engine", "install", "main", "plan_facts", "request_ids"]

TOP = 4
PROFILED_LAUNCHES = 2
KNOWN_CONFIG = ("temperature", "max_tokens", "stop_token_ids")


class Engine:
    """A model on this machine, and the recorder's own hooks reporting into memory."""

    def __init__(self, case: Case, model_path: str) -> None:
        self.case, self.model_path = case, model_path
        self.models: dict[str, Any] = {}
        self.trial: Trial | None = None
        self.stop = watch(self._listen, lambda hook: hook)  # a fault must fail the trial, not be counted

    def _listen(self, call: Call) -> Trial | None:
        return self.trial

    def load(self, dtype: str) -> Any:
        """Return the model in a dtype, loaded once. Raises CaseError when it cannot be read."""
        if dtype not in self.models:
            from transformers import AutoModelForCausalLM, GenerationConfig

            if not isinstance(known := getattr(torch, dtype, None), torch.dtype):
                raise CaseError(f"engine.dtype: torch knows no dtype {dtype!r}")
            try:
                model = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=known).eval()
            except Exception as fault:
                if out_of_memory(fault):
                    raise
                why = f"{type(fault).__name__}: {next(iter(str(fault).strip().splitlines()), '')}"
                raise CaseError(f"no model can be loaded from {self.model_path} ({why}); see --model DIR") from None
            model.generation_config = GenerationConfig()  # the request's configuration decides, not the model's
            self.models[dtype] = model.to("cuda") if torch.cuda.is_available() else model
        return self.models[dtype]

    def run(self, plan: Plan) -> Trace:
        """Return what the plan gives, or a refused trace."""
        try:
            return self._run(plan)
        except Unpinnable as reason:
            return Trace(plan=plan, refused=str(reason))

    def _run(self, plan: Plan) -> Trace:
        setup = Setup(load=self.load, model=self.load(str(self.case.engine.get("dtype") or "bfloat16")))
        with ExitStack() as stack:
            for name in sorted(plan, key=lambda name: (name != "dtype.weights", name)):
                stack.enter_context(factor(name).pin(plan[name], setup))
            config, model = self._generation_config(setup.model), setup.model
            batch = build(self.case, setup, model.config.get_text_config().vocab_size, config.pad_token_id)
            self.trial = Trial(batch, self.case.token_ids, model)
            try:
                model.generate(
                    batch.input_ids.to(model.device),
                    attention_mask=batch.padding.to(model.device),
                    generation_config=config,
                    logits_processor=setup.processors,
                )
            finally:
                trial, self.trial = self.trial, None
                trial.close()
            trial.evidence.report = torch.__config__.parallel_info() + torch.__config__.show()
        seen = {name: factor(name).observe(trial.evidence) for name in plan}
        return Trace(
            plan=plan,
            tokens=tuple(trial.tokens),
            logits_sha256=tuple(trial.hashes),
            top_token_ids=tuple(tuple(ids) for ids, _ in trial.tops),
            top_logits=tuple(tuple(values) for _, values in trial.tops),
            observed={name: value for name, value in seen.items() if value is not None},
            details=trial.details(),
        )

    def _generation_config(self, model: Any) -> Any:
        from transformers import GenerationConfig

        wanted = {name: value for name, value in self.case.decode_cfg.items() if name not in KNOWN_CONFIG}
        unknown = [name for name in wanted if not hasattr(GenerationConfig(), name)]
        if unknown:
            raise Unpinnable(f"the decode configuration holds {', '.join(unknown)}, which cannot be applied here")
        pad = model.config.get_text_config().pad_token_id
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.case.horizon(),
            eos_token_id=self.case.decode_cfg.get("stop_token_ids"),
            pad_token_id=0 if pad is None else pad,
            **wanted,
        )


class Trial:
    """Listens to one `generate` call: the request's row at every token, the profiler over the first passes."""

    def __init__(self, batch: PaddedBatch, target: tuple[int, ...], model: Any) -> None:
        self.batch = batch
        layers = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
        self.evidence = Evidence(row=batch.row, target=target, neighbours=batch.recorded, linear_layers=layers)
        self.tokens: list[int] = []
        self.hashes: list[str] = []
        self.tops: list[tuple[list[int], list[float]]] = []
        self.finished = False
        self.profiler: Any = torch.profiler.profile(record_shapes=True)
        self.profiler.start()

    def launched(self, launch: Launch) -> None:
        """Keep what was launched."""
        self.evidence.launches.append(launch)

    def chosen(self, tokens: torch.Tensor, done: torch.Tensor) -> None:
        """Take the request's token and logits; the profiler stops after the first passes."""
        launch = self.evidence.launches[-1]
        if self.profiler is not None and len(self.evidence.launches) == PROFILED_LAUNCHES:
            self.close()
        if self.finished:
            return
        row = launch.logits[self.batch.row]
        self.tokens.append(int(tokens[self.batch.row]))
        self.hashes.append(row_sha256(row))
        self.tops.append(top_logits(row, TOP))
        self.finished = bool(done[self.batch.row])

    def ended(self) -> None:
        """The loop is over; `close` follows in any case."""

    def close(self) -> None:
        """Stop the profiler and keep its operators."""
        if self.profiler is None:
            return
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        self.evidence.operators = [(event.name, event.input_shapes) for event in profiler.events()]
        self.evidence.profiled_launches = len(self.evidence.launches)

    def details(self) -> dict[str, Any]:
        """Return the launch as it was seen, for the reader of a verdict."""
        first = self.evidence.launches[0]
        attention = sorted({name for name, _ in self.evidence.operators if "scaled_dot_product" in name})
        return {
            "rows": first.rows,
            "width": first.width,
            "mask_path": first.mask_path,
            "neighbours": self.batch.neighbours,
            "attention_operators": attention,
            "gemm_calls": sum(name in ("aten::mm", "aten::addmm") for name, _ in self.evidence.operators),
            "logit_dtype": dtype_name(first.logits.dtype),
        }


def main() -> int:
    """Read the job, run its plans, write one line each. Everything that libraries print goes to stderr.

    What the input is to blame for is answered with a line of its own: {"fault": what and what to do}.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.buffer.read())
    with answers:
        try:
            engine = Engine(case_from(job["case"], "case"), job["model_path"])
            _send(answers, {"host": facts() | {"torch": torch_facts()}})
            for plan in job["plans"]:
                _send(answers, {"trace": asdict(engine.run(plan))})
        except CaseError as fault:
            _send(answers, {"fault": str(fault)})
        except (MemoryError, RuntimeError) as fault:
            if not out_of_memory(fault):
                raise
            _send(answers, {"fault": OUT_OF_MEMORY})
    return 0


def out_of_memory(fault: Exception) -> bool:
    """Return whether a device or the host had no memory left; torch says so in words."""
    return isinstance(fault, MemoryError) or any(
        words in str(fault) for words in ("out of memory", "can't allocate memory")
    )


def _send(file: Any, document: dict[str, Any]) -> None:
    file.write(json.dumps(document, allow_nan=False) + "\n")
    file.flush()


if __name__ == "__main__":
    sys.exit(main())
