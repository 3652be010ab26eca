"""The part of the vLLM recorder that lives where the model runs: in each worker, often a process of its own.

It reads the highest raw logits of every row as `compute_logits` returns them, before any
processor, mask or cast touches them, and how the launch was padded. What it saw rides back to the
engine core on the runner's own output, so it writes nothing and works under every executor.
A fault in here rides back too, and never reaches the engine.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Hook = Callable[..., Any]

RIDES_ON = "forensics_launch"
"""Attribute of ModelRunnerOutput that carries a launch's observations to the engine core."""
TOP = 3
"""Logits on record of every sampled row. The winner of a flip may have been third in the other arm; on a CPU
topk(5) of a row takes as long as topk(2)."""
HASH_LOGITS = "FORENSICS_RECORD_LOGITS_SHA256"
"""Set to 1 to hash every sampled row of raw logits: proves equal bits, copies the row to the host."""


def wrap(owner: Any, name: str, before: Hook | None = None, after: Hook | None = None) -> bool:
    """Put hooks around one method of one object; return whether the method was there.

    before(*args) gives a note, after(note, result, *args) gets it. Hooks must not raise.
    """
    original = getattr(owner, name, None)
    if not callable(original):
        return False

    @functools.wraps(original)
    def observed(*args: Any, **kwargs: Any) -> Any:
        note = before(*args, **kwargs) if before else None
        result = original(*args, **kwargs)
        if after:
            after(note, result, *args, **kwargs)
        return result

    setattr(owner, name, observed)
    return True


def attach(worker: Any) -> dict[str, Any]:
    """Install the hooks in this worker and return which of them took, and facts only this process knows.

    Called through the executor's `collective_rpc`, once a run, before the first request.
    """
    import torch

    watch = LaunchWatch(hash_logits=os.environ.get(HASH_LOGITS) == "1")
    runner = worker.model_runner
    launches = wrap(runner, "execute_model", before=watch.launched, after=watch.returned)
    wrap(runner, "sample_tokens", after=watch.returned)
    padding = wrap(runner, "_determine_batch_execution_and_padding", after=watch.dispatched)
    if not padding:  # the V2 model runner has no method of that name
        padding = wrap(runner, "prepare_inputs", after=watch.prepared)
    threading = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_", "KMP_"))}
    return {
        "top_logits": launches and wrap(runner.model, "compute_logits", after=watch.logits),
        "padding": launches and padding,
        "logits_sha256": launches and watch.hash_logits,
        "num_threads": torch.get_num_threads(),
        "environment": threading,
        "host": socket.gethostname(),
        "attention_backend": attention_backend(runner),
        "runner": f"{type(runner).__module__}.{type(runner).__qualname__}",
    }


def attention_backend(runner: Any) -> str | None:
    """Return the family of attention kernels that vLLM chose for its layers, several with a comma, None: not seen."""
    config = getattr(getattr(runner, "vllm_config", None), "compilation_config", None)
    layers = getattr(config, "static_forward_context", {}).values()
    backends = [layer.attn_backend for layer in layers if hasattr(layer, "attn_backend")]
    return ",".join(sorted({backend.get_name() for backend in backends})) or None


class LaunchWatch:
    """Follows one launch of one model runner at a time: launched, padded, logits, returned."""

    def __init__(self, *, hash_logits: bool) -> None:
        self.hash_logits = hash_logits
        self._open = False
        self._seen: dict[str, Any] = {}
        self._top: Callable[[], dict[str, Any]] | None = None
        for name in ("launched", "dispatched", "prepared", "logits", "returned"):
            setattr(self, name, self._guarded(getattr(self, name)))

    def _guarded(self, hook: Hook) -> Hook:
        @functools.wraps(hook)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return hook(*args, **kwargs)
            except Exception as fault:  # noqa: BLE001 - whatever it is, the launch goes on
                self._seen["fault"] = f"worker {hook.__name__}: {type(fault).__name__}: {fault}"

        return guarded

    def launched(self, scheduler_output: Any, *_: Any, **__: Any) -> None:
        """A launch begins: forget the one before. Warm-up and dummy runs never come through here."""
        self._open = scheduler_output.total_num_scheduled_tokens > 0
        self._seen, self._top = {}, None

    def dispatched(self, _: Any, result: Any, *__: Any, **___: Any) -> None:
        """V1 runner chose a graph and a padded size."""
        if self._open:
            self._seen |= {"graph": result[0].name, "padded_tokens": int(result[1].num_tokens)}

    def prepared(self, _: Any, result: Any, *args: Any, **__: Any) -> None:
        """V2 runner laid out the launch; the dispatcher's choice is among the arguments."""
        if self._open:
            self._seen["padded_tokens"] = int(result.num_tokens_after_padding)
            mode = next((arg.cg_mode.name for arg in args if hasattr(arg, "cg_mode")), None)
            self._seen |= {"graph": mode} if mode else {}

    def logits(self, _: Any, logits: Any, *__: Any, **___: Any) -> None:
        """Take the first logits of the launch: those that choose tokens. Later ones score prompts or drafts."""
        if self._open and logits is not None:
            self._open = False
            self._top = _top(logits, hash_rows=self.hash_logits)

    def returned(self, _: Any, output: Any, *__: Any, **___: Any) -> None:
        """Hand the observations over: now, or when an asynchronous output is collected."""
        if output is None or not (self._seen or self._top):
            return
        if hasattr(output, "get_output"):
            seen, top = self._seen, self._top
            wrap(output, "get_output", after=self._guarded(lambda _, done: _hand_over(done, seen, top)))
        else:
            _hand_over(output, self._seen, self._top)
        self._seen, self._top = {}, None


def _hand_over(output: Any, seen: dict[str, Any], top: Callable[[], dict[str, Any]] | None) -> None:
    read = top() if top else {}
    if read and len(read["top_logits"]) == len(output.req_ids):
        seen |= read
    elif read:  # speculative decoding scores several positions a request: rows are no requests there
        seen["fault"] = f"{len(read['top_logits'])} rows of logits for {len(output.req_ids)} requests: not recorded"
    setattr(output, RIDES_ON, seen)


def _top(logits: Any, *, hash_rows: bool) -> Callable[[], dict[str, Any]]:
    """Start copying the highest logits of each row to the host; the result waits for the copy and reads it.

    What chooses at temperature 0 is argmax over the row in float32 (an exact cast).
    """
    import torch

    from replay.engines.highest_logits import highest

    values, ids = highest(logits, TOP + 1)
    copies = [part.to("cpu", non_blocking=True) for part in (values, ids, _argmax(logits, values, ids))]
    copied = torch.cuda.Event() if logits.is_cuda else None
    if copied is not None:
        copied.record()
    hashes = _row_hashes(logits) if hash_rows else None
    dtype = str(logits.dtype).removeprefix("torch.")

    def read() -> dict[str, Any]:
        if copied is not None:
            copied.synchronize()
        rows = [ranked(*row) for row in zip(*(part.tolist() for part in copies), strict=True)]
        seen = {
            "top_logits": [values for values, _ in rows],
            "top_token_ids": [ids for _, ids in rows],
            "logit_dtype": dtype,
        }
        return seen | ({"logits_sha256": hashes} if hashes else {})

    return read


def _argmax(logits: Any, values: Any, ids: Any) -> Any:
    """Return what argmax takes in each row, or -1 where the highest logits that are known tell.

    argmax takes the first of equal logits. On a CPU it is asked only where all known ones are equal, and others may be.
    On a GPU the pass is cheap, and to ask which rows those are would wait for the device.
    """
    if logits.is_cuda:
        return logits.float().argmax(dim=-1)
    best = ids[:, 0].new_full((len(ids),), -1)
    tied = (values[:, 0] == values[:, -1]).nonzero().flatten()
    if len(tied):
        best[tied] = logits[tied].float().argmax(dim=-1)
    return best


def ranked(values: list[float], ids: list[int], best: int) -> tuple[list[float], list[int]]:
    """Return up to TOP logits and tokens of one row, highest first, in an order that is a function of the logits alone.

    best: what argmax took, -1 where it is the first of the equal ones here. Among equal logits topk may name any token,
    in any order. So the token that argmax took goes first, then equal ones by id, and those that tie with one that may
    lie outside of what topk returned are left out.
    """
    if len(values) > TOP and all(map(operator.gt, values, values[1:])):  # no two are equal
        return values[:TOP], ids[:TOP]
    pairs = sorted(zip(values, ids, strict=True), key=lambda pair: (-pair[0], pair[1] != best, pair[1]))
    if len(pairs) > TOP:  # else this is the whole vocabulary
        pairs = [pair for pair in pairs[:TOP] if pair[0] > pairs[-1][0]] or [(pairs[0][0], best)]
    return [value for value, _ in pairs], [token for _, token in pairs]


def _row_hashes(logits: Any) -> list[str]:
    import torch

    rows = logits.detach().contiguous().cpu().view(torch.uint8).numpy()
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]
