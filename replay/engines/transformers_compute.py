"""How a batch of continuous batching is launched, eagerly, compiled or as a graph; and its raw logits.

Logits are read where the sampler runs eagerly: in a captured or compiled one our code would run once, not once a
step, and would change what is compiled.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from replay.engines.transformers_facts import dtype_name
from replay.engines.transformers_hooks import TOP, row_sha256, top_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, MutableMapping

    from replay.engines.transformers_batches import Batch, Loop


class LaunchWatcher:
    """Says of each batch how it ran, and reads its logits. `loops`: the loop of a model runner."""

    def __init__(self, loops: MutableMapping[Any, Loop], guard: Callable[..., Any]) -> None:
        self.loops, self.guard = loops, guard

    def compute(self, runner: Any, _model: Any, _batch_data: Any) -> Generator[None, Any, None]:
        """The batch is launched. A warm-up launches what no one prepared."""
        loop = self.loops.get(runner)
        if loop is None or not loop.batches:
            yield
            return
        batch, io = loop.batches[-1], runner.inputs_and_outputs
        forward, graphs = runner._get_forward_fn(use_block_table=io.use_block_table)
        eager = forward == runner._forward_process_and_sample
        launched = io.io_pairs[io.current_pair].device_io if hasattr(io, "io_pairs") else io
        _note_launch(batch, launched if graphs else None, graph_name(runner), eager=eager and not loop.compiled)
        if graphs or not eager or runner.logit_processor.do_processing:  # processed logits are not raw
            yield
            return
        hashed = loop.run.recorder.with_logits_sha256
        sample, read = runner._sample, self.guard(functools.partial(_read_logits, batch, runner.cache.dtype, hashed))

        def watched(scores: torch.Tensor, output_ids: Any) -> Any:
            read(scores)
            return sample(scores, output_ids)

        runner._sample = watched
        try:
            yield
        finally:
            del runner._sample


def graph_name(runner: Any) -> str:
    """Return what a replayed graph is called: of the whole pass, sampling included."""
    return f"{torch.device(runner.cache.device).type}_graph_full"


def configured_graph_mode(runner: Any, *, compiled: bool) -> str:
    """Return the mode that a loop is set up for; each batch says what it ran in. `compiled`: of the model's parts."""
    if runner.use_cuda_graph_varlen or runner.use_cuda_graph_decode:
        return graph_name(runner)
    return "compiled" if runner.pad_inputs or compiled else "eager"


def _note_launch(batch: Batch, graphs: Any, name: str, *, eager: bool) -> None:
    """Note graph mode and shape class. `graphs`: the inputs whose graph is replayed, or None.

    A batch whose graph is only being captured runs without it: its tokens come from the pass before the capture.
    """
    mode, fields = "eager" if eager else "compiled", batch.fields
    shape = f"tokens={fields['batch_tokens']},rows={fields['batch_size']}"
    if fields["padded_tokens"] != fields["batch_tokens"]:
        shape += f",padded={fields['padded_tokens']}"
    if graphs is not None:
        key = graphs._get_graph_key()
        shape += f",graph={'x'.join(map(str, key))}"
        mode = mode if graphs.graphs.get_graph(key) is None else name
    fields["graph_mode"], fields["shape"] = mode, shape
    fields["plan"]["graph.mode"] = mode


def _read_logits(batch: Batch, dtype: torch.dtype, hashed: bool, scores: torch.Tensor) -> None:
    raw = scores[0].detach().to(dtype).cpu()  # the engine's own cast to float32 is exact, so this undoes it
    batch.logits = [_logit_fields(row, hashed=hashed) for row in raw]


def _logit_fields(row: torch.Tensor, *, hashed: bool) -> dict[str, Any]:
    ids, values = top_logits(row, TOP)
    fields = {"ids": ids, "top_logits": values, "logit_dtype": dtype_name(row.dtype)}
    return fields | ({"logits_sha256": row_sha256(row)} if hashed else {})
