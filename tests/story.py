"""A log told in a few lines: one engine, requests that run alone or share launches, tokens and logits by hand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forensics.explain import Explanation, explain
from forensics.load import load
from forensics.store import Store
from replay.record import token_ids_sha256

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = (5, 6, 7, 8)
A, B = (1, 2, 3, 4), (1, 2, 9, 9)
"""Two outputs of one request, which part at token 2."""
RIVALS = {3: 9, 9: 3}
"""Second-best token of a token; 99 for all others."""
GREEDY = {"temperature": 0, "max_tokens": 8}


@dataclass
class Story:
    """Collects records; `tell` writes them to a file and loads them into a store."""

    run_id: str = "run-1"
    records: list[dict[str, Any]] = field(default_factory=list)
    engine_step: int = 0
    paused: float = 0.0

    def now(self) -> float:
        """Return the time: 10 ms a record, and the pauses."""
        return 1000.0 + self.paused + len(self.records) / 100

    def pause(self, seconds: float) -> Story:
        self.paused += seconds
        return self

    def add(self, kind: str, **fields: Any) -> None:
        base = {"kind": kind, "run_id": self.run_id, "replica_id": "r0", "ts": self.now()}
        self.records.append(base | {"seq": len(self.records), "writer": f"w-{self.run_id}"} | fields)

    def engine(self, **fields: Any) -> Story:
        facts = {
            "engine": "toy", "engine_version": "1", "model_id": "tiny", "dtype": "bfloat16",
            "weights_sha256": "a" * 64, "versions": {"torch": "2.13"}, "device": "cpu", "device_type": "cpu",
            "quantization": "none", "token_tag_key_id": "k1",
            "observes": {"step": ["resumed", "preempted"]}, "isolation": {"cross_tenant_batching": True},
        }  # fmt: skip
        self.add("engine", **(facts | fields))
        return self

    def request(
        self, req_id: str, tokens: tuple[int, ...], *, rows: int = 1, drift: float = 0.0, at: int = 0, **fields: Any
    ) -> Story:
        """One request that shares every launch with rows - 1 others; its logits move by `drift` from token `at` on."""
        ids = fields.pop("prompt", PROMPT)
        cfg = fields.pop("cfg", GREEDY)
        steps = fields.pop("step_fields", {})
        batch = fields.pop("batch_fields", {})
        x = {
            "effective_token_ids": list(ids), "effective_token_ids_sha256": token_ids_sha256(ids),
            "effective_tokens": len(ids), "decode_cfg_applied": cfg, "token_rule": "argmax",
            "output_token_ids": list(tokens), "output_token_ids_sha256": token_ids_sha256(tokens),
            "output_tokens": len(tokens), "finish_reason": "length", "arrival_ts": self.now(),
        }  # fmt: skip
        self.add("request", req_id=req_id, **(x | fields))
        for index, token in enumerate(tokens):
            scheduled, computed = (len(ids), 0) if index == 0 else (1, len(ids) + index - 1)
            best = 20.0 + (drift if index >= at else 0.0)
            self.add(
                "batch", engine_step=self.engine_step, rank=0, batch_size=rows, batch_tokens=scheduled * rows,
                padded_tokens=scheduled * rows, graph_mode="eager", paging_on=False, headroom_mb=4096.0,
                plan={"batch.rows": rows}, **batch,
            )  # fmt: skip
            self.add(
                "step", req_id=req_id, step=index, engine_step=self.engine_step, row=0, token_index=index,
                token_id=token,
                num_scheduled_tokens=scheduled, num_computed_tokens=computed,
                top_token_ids=[token, RIVALS.get(token, 99)],
                top_logits=[best, 19.875], margin=best - 19.875, logit_dtype="bfloat16", resumed=False,
                queue_ms=0.5 if index == 0 else None, plan={"batch.row": 0}, **steps,
            )  # fmt: skip
            for mate in range(1, rows):
                self.add(
                    "step", req_id=f"{req_id}-mate{mate}", step=index, engine_step=self.engine_step, row=mate,
                    num_scheduled_tokens=scheduled, num_computed_tokens=computed,
                )  # fmt: skip
            self.engine_step += 1
        return self

    def amend(self, req_id: str, kind: str, steps: tuple[int, ...] = (0, 1, 2, 3), **fields: Any) -> Story:
        """Change what is on record of some steps of a request, or of their batches; None takes a field away."""
        own = [one for one in self.records if one["kind"] == "step" and one["req_id"] == req_id]
        launches = {one["engine_step"] for one in own if one["step"] in steps}
        found = [one for one in self.records if one["kind"] == kind and one.get("engine_step") in launches]
        found = [one for one in found if kind == "batch" or one["req_id"] == req_id]
        assert found, f"{req_id} has no such {kind}"
        for record in found:
            record |= fields
        return self

    def write(self, path: Path) -> Path:
        lines = [{key: value for key, value in record.items() if value is not None} for record in self.records]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    def tell(self, folder: Path, *more: Story) -> Store:
        folder.mkdir(exist_ok=True)
        store = Store.open(folder / "story.duckdb", create=True)
        for number, story in enumerate((self, *more)):
            name = hashlib.sha256(str(number).encode()).hexdigest()[:6]
            load([story.write(folder / f"{name}.jsonl")], store, None)
        return store


def loaded(**load: Any) -> Story:
    """Two idle runs of one request, and one under load whose logits drift from the first token on."""
    story = Story().engine().request("idle-1", A).request("idle-2", A)
    return story.request("load", B, rows=4, drift=0.25, **load)


def told(folder: Path, *stories: Story, req: str = "load", against: str | None = None) -> Explanation:
    with stories[0].tell(folder, *stories[1:]) as store:
        return explain(store, req, against)


def codes(explanation: Explanation) -> set[str]:
    return {finding.code for finding in explanation.findings}


def grades(explanation: Explanation) -> dict[tuple[str, str], str]:
    return {(link.cause, link.effect): link.grade for link in explanation.links}


def without(story: Story, *names: str) -> Story:
    for record in story.records:
        for name in names:
            record.pop(name, None)
    return story


def gaps(explanation: Explanation) -> set[str]:
    return {gap.code for gap in explanation.gaps}


def says(explanation: Explanation, code: str) -> str:
    finding = explanation.finding(code)
    assert finding is not None, f"{code} did not fire"
    return finding.says


def quiet(explanation: Explanation, code: str) -> bool:
    """Looked, with everything on record, and ruled out."""
    return code in explanation.ruled_out and code not in codes(explanation) | gaps(explanation)
