"""Prove every flip that batching causes on this machine, and see whether the proof is ever wrong.

Four measurements, each of real executions: natural flips (every prompt alone against a left-padded batch of 8), arms
built from known factors beside an innocent one, decoys (pins that change bits and have nothing to do with the flip),
and what a trial costs beside plain `generate`. Continuous batching against each prompt alone is proven too, and all
of it once more in fp32, where nothing may be proven.

    python tools/prove_flips.py fixtures/models/tiny-llama docs/evidence/proof-tiny.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from flip_rate import held_out_prompts
from record_tiny_incident import generate
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from forensics.casefile import build_case
from forensics.errors import ForensicsError
from forensics.incident import assemble
from forensics.load import load
from forensics.store import Store
from forensics.timeline import Thresholds
from replay.case import Arm, Case, TokenStep
from replay.children import Children
from replay.engines.transformers import Engine, install, request_ids
from replay.host import cpu_facts, library_versions, weights_sha256
from replay.prove import Verdict, prove
from replay.trial import Trace, Treatment, shared_start

BATCH, MOST_DECOYED = 8, 25
BASE = {
    "batch.rows": "1", "batch.row": "0", "batch.left_pad": "0", "batch.mask_path": "implicit",
    "attention.backend": "flash", "dtype.weights": "bfloat16", "cpu.threads": "1", "token.rule": "argmax",
}  # fmt: skip
INNOCENT = {"batch.rows": "4"}
PADDED = {"batch.left_pad": "9", "batch.mask_path": "explicit"}
KNOWN: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"gemm.k_split": "3"}, {"gemm.k_split": "1"}),
    ({"attention.backend": "math"}, {}),
    ({"quant.int8": "fused"}, {"quant.int8": "dequantise_first"}),
    ({"cpu.mkldnn": "false"}, {"cpu.mkldnn": "true"}),
    ({"decode.mode": "recompute"}, {"decode.mode": "kv_cache"}),
    ({"dtype.lm_head": "float32"}, {"dtype.lm_head": "bfloat16"}),
    (PADDED, {}),
    ({"gemm.k_split": "3", "attention.backend": "math"}, {"gemm.k_split": "1"}),
]
"""What the incident has and what the reference has instead, where it is not BASE's value."""

DECOYS: list[dict[str, str]] = [
    *({"gemm.k_split": splits} for splits in ("2", "4", "5", "6", "7", "8")),
    {"attention.backend": "math"}, {"attention.backend": "eager", "batch.mask_path": "explicit"},
    {"quant.int8": "fused"}, {"quant.int8": "dequantise_first"}, {"cpu.mkldnn": "false"}, {"dtype.lm_head": "float32"},
    {"decode.mode": "recompute"}, {"dtype.weights": "float32"},
]  # fmt: skip


class Bench:
    """The model folder, and children that stay alive over all proofs."""

    def __init__(self, model: Path, children: Children, tokens: int) -> None:
        self.model, self.children, self.tokens = model, children, tokens
        self.weights = weights_sha256(model)

    def prove(self, case: Case) -> tuple[Verdict, dict[str, Any]]:
        """Return the verdict, and what it took."""
        started = time.perf_counter()
        verdict = prove(case, [], self.children.run, weights_sha256=self.weights)
        seconds = round(time.perf_counter() - started, 1)
        runs = len({trial.execution for trial in verdict.trials})
        return verdict, {
            "outcome": verdict.outcome, "factors": [one.factor for one in verdict.factors], "minimal": verdict.minimal,
            "trials": runs, "seconds": seconds, "flip": case.flip_index,
            "rounding": verdict.rounding.answer if verdict.rounding else None,
            "carried_by": verdict.history.carried_by if verdict.history else None, "claim": verdict.claim,
        }  # fmt: skip

    def run(self, case: Case, plan: dict[str, str]) -> Trace:
        """Return one trial."""
        return self.children.run(case, Treatment(plan))


def natural_cases(model: Path, dtype: torch.dtype, prompts: list[list[int]], tokens: int) -> tuple[list[Case], int]:
    """Return a case for each prompt whose text alone and in its batch differ, and how many prompts there were."""
    os.environ["FORENSICS_RECORD_IDS"] = "1"
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    loaded.generation_config = GenerationConfig(max_new_tokens=tokens, pad_token_id=loaded.config.pad_token_id or 0)
    loaded.config.pad_token_id = loaded.config.pad_token_id or 0
    with tempfile.TemporaryDirectory() as name:
        stop = install(Path(name) / "log")
        for row, ids in enumerate(prompts):
            generate(loaded, [ids], [f"alone-{row}"])
        for start in range(0, len(prompts), BATCH):
            rows = prompts[start : start + BATCH]
            generate(loaded, rows, [f"batch-{start + row}" for row in range(len(rows))])
        stop()
        with Store.open(Path(name) / "store.duckdb", create=True) as store:
            load(sorted((Path(name) / "log").glob("*.jsonl")), store, None)
            cases = [case for row in range(len(prompts)) if (case := _case(store, row)) is not None]
    return cases, len(prompts)


def continuous_outcomes(bench: Bench, prompts: list[list[int]]) -> dict[str, Any]:
    """Return, for each dtype, what the proof says of prompts whose texts alone and in continuous batching differ."""
    return {dtype: _continuous(bench, getattr(torch, dtype), prompts) for dtype in ("bfloat16", "float32")}


def _continuous(bench: Bench, dtype: torch.dtype, prompts: list[list[int]]) -> dict[str, Any]:
    os.environ |= {"FORENSICS_RECORD_IDS": "1", "FORENSICS_RECORD_COMPRESS": "none"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(bench.model, dtype=dtype).eval()
    settings = GenerationConfig(max_new_tokens=bench.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    shape = ContinuousBatchingConfig(max_batch_tokens=256, num_blocks=8 * len(prompts), page_size=32)
    with tempfile.TemporaryDirectory() as name:
        stop = install(Path(name) / "log")
        for row, ids in enumerate(prompts):
            with request_ids([f"alone-{row}"]):
                batch = torch.tensor([ids])
                loaded.generate(batch, attention_mask=torch.ones_like(batch), generation_config=settings)
        loaded.generate_batch(prompts, generation_config=settings, continuous_batching_config=shape)
        stop()
        with Store.open(Path(name) / "store.duckdb", create=True) as store:
            load(sorted((Path(name) / "log").glob("*.jsonl")), store, None)
            found = [_case(store, row, f"req_{row}") for row in range(len(prompts))]
    proofs = [{"prompt": row} | bench.prove(case)[1] for row, case in enumerate(found) if case is not None]
    return {"prompts": len(prompts), "flips": len(proofs), "proofs": proofs}


def _case(store: Store, row: int, name: str | None = None) -> Case | None:
    try:
        incident = assemble(store, name or f"batch-{row}", f"alone-{row}", Thresholds())
        return build_case(store, incident) if incident.flip is not None else None
    except ForensicsError as error:
        if error.exit_code == 0:  # the two do not differ
            return None
        raise


def built_cases(bench: Bench, prompts: list[list[int]], each: int) -> list[tuple[Case, set[str]]]:
    """Return (case, true factors): arms executed under plans that differ in known factors and in one innocent one.

    The innocent one is kept only where exchanging it alone changes no bit of either arm.
    """
    found = []
    for on, off in KNOWN:
        mine = 0
        for ids in prompts:
            incident, reference = BASE | on | INNOCENT, BASE | off
            case = built(ids, bench, incident, reference)
            pair = bench.run(case, incident), bench.run(case, reference)
            count = shared_start(pair[0].tokens, pair[1].tokens)
            if count >= min(len(one.tokens) for one in pair):
                continue
            alone = bench.run(case, BASE | on), bench.run(case, BASE | off | INNOCENT)
            if any(not one.same_bits(two, count + 1) for one, two in zip(pair, alone, strict=True)):
                continue
            arms = [Arm(f"run-{name}", name, plan, output_token_ids=trace.tokens, steps=_steps(trace, count)) for
                    name, plan, trace in (("i", incident, pair[0]), ("r", reference, pair[1]))]  # fmt: skip
            found.append((built(ids, bench, arms[0], arms[1], count), set(on) | set(off)))
            mine += 1
            if mine == each:
                break
    return found


def built(ids: list[int], bench: Bench, incident: Any, reference: Any, flip: int | None = None) -> Case:
    """Return a case from two arms, or from two plans that are still to be run."""
    arms = [one if isinstance(one, Arm) else Arm("run", "r", one) for one in (incident, reference)]
    engine = {"engine": "transformers", "dtype": "bfloat16", "weights_sha256": bench.weights}
    return Case(
        "", tuple(ids), {"temperature": 0, "max_tokens": bench.tokens}, "argmax", engine, *arms, flip_index=flip
    )


def _steps(trace: Trace, last: int) -> tuple[TokenStep, ...]:
    return tuple(TokenStep(i, trace.tokens[i], (), (), trace.logits_sha256[i]) for i in range(last + 1))


def decoys(bench: Bench, cases: list[Case]) -> dict[str, int]:
    """Exchange pins that have nothing to do with the flip in both arms; count what would pass for proof."""
    count: Counter[str] = Counter()
    for case in cases:
        length = (case.flip_index or 0) + 1
        arms = [bench.run(case, arm.plan) for arm in (case.incident, case.reference)]
        for pin in DECOYS:
            if pin.keys() & case.differing_factors().keys():
                continue
            traces = [bench.run(case, arm.plan | pin) for arm in (case.incident, case.reference)]
            if any(trace.missing for trace in traces) or any(
                trace.same_bits(arm, length) for trace, arm in zip(traces, arms, strict=True)
            ):
                continue
            restores, induces = traces[0].same_tokens(arms[1], length), traces[1].same_tokens(arms[0], length)
            bits = traces[0].same_bits(arms[1], length) and traces[1].same_bits(arms[0], length)
            count["decoys"] += 1
            count["would pass on tokens one way"] += restores or induces
            count["would pass on tokens both ways"] += restores and induces
            count["pass as proof"] += bits
    return dict(count)


def overhead(model: Path, ids: list[int], tokens: int, runs: int = 5) -> dict[str, float]:
    """Return the median seconds of a trial and of plain generate of the same tokens, model loaded, one process."""
    case = Case("", tuple(ids), {"temperature": 0, "max_tokens": tokens}, "argmax",
                {"engine": "transformers", "dtype": "bfloat16"}, Arm("a", "a", BASE), Arm("b", "b", BASE))  # fmt: skip
    engine = Engine(case, str(model))
    loaded, times = engine.models.load("bfloat16"), {"trial": [0.0], "generate": [0.0]}
    batch = torch.tensor([ids])
    for _ in range(runs + 1):
        started = time.perf_counter()
        trace = engine.run(Treatment(BASE))
        assert trace.missing is None
        times["trial"].append(time.perf_counter() - started)
        started = time.perf_counter()
        loaded.generate(
            batch, attention_mask=torch.ones_like(batch), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        times["generate"].append(time.perf_counter() - started)
    engine.stop()
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    return {name: round(value, 4) for name, value in medians.items()} | {
        "ratio": round(medians["trial"] / medians["generate"], 2)
    }


def main() -> None:
    """Measure, write the evidence, print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--built", type=int, default=3, help="cases a known factor; 0: none, and no decoys")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = held_out_prompts(options.model)[: options.prompts]
    evidence: dict[str, Any] = {
        "command": f"python tools/prove_flips.py MODEL OUT --prompts {options.prompts} --tokens {options.tokens} "
        f"--built {options.built}",
        "machine": {"cpu": cpu_facts(), "versions": library_versions(), "threads": 1},
        "model": {"name": options.model.name, "weights_sha256": weights_sha256(options.model)},
        "overhead": overhead(options.model, prompts[0], options.tokens),
    }
    with Children(options.model) as children:
        bench = Bench(options.model, children, options.tokens)
        for dtype in (torch.bfloat16, torch.float32):
            cases, asked = natural_cases(options.model, dtype, prompts, options.tokens)
            proofs = []
            for case in cases:
                proofs.append(bench.prove(case)[1])
                print(proofs[-1]["outcome"], proofs[-1]["seconds"], "s", flush=True)
            evidence[f"natural {dtype}".replace("torch.", "")] = {
                "prompts": asked,
                "flips": len(cases),
                "proofs": proofs,
            }
            if dtype == torch.bfloat16:
                flips = cases
            save(options.out, evidence)
        evidence["continuous batching"] = continuous_outcomes(bench, prompts)
        known = built_cases(bench, prompts, options.built) if options.built else []
        decoyed = [*flips, *(case for case, _ in known)][: MOST_DECOYED if options.built else 0]
        evidence["decoys"] = decoys(bench, decoyed)
        results = [(bench.prove(case)[1], truth) for case, truth in known]
        evidence["known factors"] = [one | {"truth": sorted(truth)} for one, truth in results]
        save(options.out, evidence)
    print(summary(evidence))


def save(path: Path, evidence: dict[str, Any]) -> None:
    """Write what there is so far."""
    path.write_text(json.dumps(evidence, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(evidence: dict[str, Any]) -> str:
    """Return the figures in a few lines."""
    lines = [f"a trial takes {evidence['overhead']['ratio']} times plain generate"]
    for name in ("natural bfloat16", "natural float32"):
        part = evidence[name]
        outcomes = dict(Counter(one["outcome"] for one in part["proofs"]))
        lines.append(f"{name}: {part['flips']} of {part['prompts']} prompts flip; outcomes {outcomes}")
        if part["proofs"]:
            trials, seconds = ([one[key] for one in part["proofs"]] for key in ("trials", "seconds"))
            lines.append(
                f"  at most {max(trials)} trials and {max(seconds)} s a proof, median {statistics.median(seconds)} s"
            )
    for dtype, part in evidence["continuous batching"].items():
        outcomes = dict(Counter(one["outcome"] for one in part["proofs"]))
        lines.append(f"continuous batching, {dtype}: {part['flips']} of {part['prompts']} flip; outcomes {outcomes}")
    lines.append(f"decoys: {evidence['decoys']}")
    right = sum(one["outcome"] == "proven" and one["factors"] == one["truth"] for one in evidence["known factors"])
    lines.append(f"known factors: {right} of {len(evidence['known factors'])} named exactly")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
