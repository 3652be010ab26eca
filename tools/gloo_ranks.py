"""The tiny model split over Gloo ranks: every rank computes its part of each sum, `torch.distributed` adds them up.

Of each layer a rank holds its columns of the output projection and its part of the MLP; two all_reduce a layer and one
all_gather of the vocabulary's parts stand on the path of every step. Attention, which nine heads do not let four ranks
share, each rank computes whole. A collective writes one contract record a rank.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.functional import linear, scaled_dot_product_attention, silu

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import LlamaForCausalLM

    from replay.writer import Writer

COMM = "tp-0"


class Fault(NamedTuple):
    """What is wrong in the engine steps from `first` to `last`, both included; ms: at each all_reduce.

    what: 'straggler' (`rank` computes so much longer), 'link' (every rank's all_reduce takes so much longer).
    """

    what: str = "none"
    rank: int = 0
    ms: float = 0.0
    first: int = 0
    last: int = -1

    def at(self, engine_step: int, what: str) -> bool:
        """Return whether it is of this kind, and on in this step."""
        return self.what == what and self.first <= engine_step <= self.last


class Collectives:
    """Runs collectives of one rank and writes their records; times are this rank's own, in ms."""

    def __init__(self, log: Writer, fault: Fault) -> None:
        self._log, self._fault = log, fault
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._seq, self._step, self._free = 0, 0, 0.0

    def begin(self, engine_step: int) -> None:
        """Start to count compute: what came before belongs to no step."""
        self._step, self._free = engine_step, time.perf_counter()

    def all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        """Add up the parts of all ranks. Where a fault says so, this rank comes late or the wire is slow."""
        if self._fault.at(self._step, "straggler") and self.rank == self._fault.rank:
            time.sleep(self._fault.ms / 1000)
        slow = self._fault.ms / 1000 if self._fault.at(self._step, "link") else 0.0

        def run() -> None:
            dist.all_reduce(part)
            time.sleep(slow)

        self._timed("all_reduce", part, run)
        return part

    def all_gather(self, part: torch.Tensor) -> torch.Tensor:
        """Return the parts of all ranks side by side along the last axis."""
        parts = [torch.empty_like(part) for _ in range(self.ranks)]
        self._timed("all_gather", part, lambda: dist.all_gather(parts, part))
        return torch.cat(parts, -1)

    def _timed(self, op: str, tensor: torch.Tensor, run: Callable[[], None]) -> None:
        start_ts, start = time.time(), time.perf_counter()
        run()
        end = time.perf_counter()
        self._log.write(
            "collective", engine_step=self._step, rank=self.rank, comm_id=COMM, op=op, seq_no=self._seq,
            bytes=tensor.nbytes, start_ts=round(start_ts, 6), end_ts=round(start_ts + end - start, 6),
            comm_ms=round((end - start) * 1000, 4), compute_ms=round((start - self._free) * 1000, 4),
        )  # fmt: skip
        self._seq, self._free = self._seq + 1, end


class Row(NamedTuple):
    """One request in a launch: the ids to compute, and how many of it were computed before."""

    req_id: str
    ids: list[int]
    computed: int


class SplitModel:
    """One rank's part of the model, with the KV of the requests that it has seen."""

    def __init__(self, model: LlamaForCausalLM, wire: Collectives) -> None:
        self._model, self._wire = model.model, wire
        self._head = model.lm_head.weight.chunk(wire.ranks)[wire.rank]
        self._kv: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._size = model.config.head_dim

    def forget(self, req_id: str) -> None:
        """Drop the KV of a request."""
        for layer in range(len(self._model.layers)):
            self._kv.pop((req_id, layer), None)

    @torch.inference_mode()
    def step(self, rows: list[Row]) -> torch.Tensor:
        """Run one launch and return the raw logits after the last token of each row: [rows, vocabulary]."""
        hidden = self._model.embed_tokens(torch.tensor([one for row in rows for one in row.ids]))
        positions = torch.tensor([[row.computed + at for row in rows for at in range(len(row.ids))]])
        turn = self._model.rotary_emb(hidden, positions)
        for index, layer in enumerate(self._model.layers):
            mixed = self._attend(layer.self_attn, layer.input_layernorm(hidden), turn, rows, index)
            hidden = hidden + self._wire.all_reduce(
                linear(self._mine(mixed), self._mine(layer.self_attn.o_proj.weight))
            )
            normed, mlp = layer.post_attention_layernorm(hidden), layer.mlp
            gate, up = (linear(normed, self._mine(one.weight, 0)) for one in (mlp.gate_proj, mlp.up_proj))
            hidden = hidden + self._wire.all_reduce(linear(silu(gate) * up, self._mine(mlp.down_proj.weight)))
        last = torch.tensor([len(row.ids) for row in rows]).cumsum(0) - 1
        return self._wire.all_gather(linear(self._model.norm(hidden)[last], self._head))

    def _mine(self, whole: torch.Tensor, axis: int = -1) -> torch.Tensor:
        return whole.chunk(self._wire.ranks, axis)[self._wire.rank]

    def _attend(self, attention: Any, hidden: torch.Tensor, turn: Any, rows: list[Row], layer: int) -> torch.Tensor:
        """Attend row by row, each to its own KV: what a row attends to does not depend on its company."""
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (one(hidden).unflatten(-1, (-1, self._size)).transpose(0, 1) for one in projections)
        query, key = (_rotate(one, *turn) for one in (query, key))
        mixed, start = [], 0
        for row in rows:
            part = slice(start, start + len(row.ids))
            start = part.stop
            before = self._kv.get((row.req_id, layer))
            keys, values = (
                new[:, part] if before is None else torch.cat((old, new[:, part]), 1)
                for old, new in zip(before or (key, value), (key, value), strict=True)
            )
            self._kv[row.req_id, layer] = keys, values
            one = scaled_dot_product_attention(
                query[None, :, part], keys[None], values[None], is_causal=before is None, enable_gqa=True
            )
            mixed.append(one[0].transpose(0, 1).flatten(1))
        return torch.cat(mixed)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, other = heads.chunk(2, -1)
    return heads * cos + torch.cat((-other, one), -1) * sin
