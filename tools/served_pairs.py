"""Ask a real vLLM server the same twice, alone and under load, and find the requests that got two answers.

Two lives of one server: in the first every prompt is asked alone, in the second all come in a shape of load
(vllm_load.py), in rounds with an idle moment between them. The prefix cache is emptied before each round.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from train_tiny_model import documents
from transformers import AutoTokenizer
from vllm_load import Load, Words, ask_rounds, in_rounds, stretches
from vllm_server import serving

from forensics.incident import Incident, assemble
from forensics.load import load as ingest
from forensics.store import Store
from forensics.timeline import Thresholds

if TYPE_CHECKING:
    from pathlib import Path

ROUND = 20
LONG_TEXT = 1000
"""Characters from which on a document is taken for prompts."""


def words(model: Path) -> Words:
    """Return stretches of the documentation that ships with Python, in the model's tokens."""
    texts = [text for text in documents() if len(text) >= LONG_TEXT]
    ids = AutoTokenizer.from_pretrained(model)(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return stretches(list(chain.from_iterable(ids)))


def record(python: str, model: Path, folder: Path, shape: Load) -> dict[str, Any]:
    """Serve both lives, keep their log and store in `folder`; return how the pairs stand and which differ."""
    log = folder / "log"
    log.mkdir(parents=True)
    took = {}
    for life, size in (("idle", 1), ("load", ROUND)):
        rounds = in_rounds([replace(one, name=f"{life}-{one.name}") for one in shape.asks], size)
        with serving(python, model, log, life, shape.flags) as port:
            took[f"{life}_s"] = round(ask_rounds(python, port, rounds, emptied=True), 1)
    with Store.open(folder / "forensics.duckdb", create=True) as store:
        ingest(sorted(log.glob("*.jsonl")), store, None)
        pairs = {one.name: pair(store, one.name) for one in shape.asks}
        engine = next(iter(pairs.values())).target.engine or {}
        events = store.ask("events", run_id=engine["run_id"], replica_id="load", first=0, last=1 << 40)
    return took | {
        "engine": f"vllm {engine['engine_version']}, {engine['dtype']}",
        "requests": len(pairs),
        "preemptions_under_load": events.filter(events["what"] == "preemption").height,
        "standings": dict(Counter(one.standing for one in pairs.values())),
        "differ": sorted(name for name, one in pairs.items() if one.standing == "divergence"),
    }


def pair(store: Store, name: str) -> Incident:
    """Return the comparison of a request under load with itself alone. vLLM numbers the prompts of one request."""
    return assemble(store, f"cmpl-load-{name}-0", f"cmpl-idle-{name}-0", Thresholds())
