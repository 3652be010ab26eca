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
import resource
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from record_tiny_incident import generate
from train_tiny_model import held_out_prompts
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BATCH = 8
BASE = {
    "batch.rows": "1", "batch.row": "0", "batch.left_pad": "0", "batch.mask_path": "implicit",
    "attention.backend": "flash", "dtype.weights": "bfloat16", "cpu.threads": "1", "token.rule": "argmax",
}  # fmt: skip
INNOCENT = {"batch.rows": "4"}
PADDED = {"batch.left_pad": "9", "batch.mask_path": "explicit"}
Known = tuple[dict[str, str], dict[str, str]]
KNOWN: list[Known] = [
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
    """The model folder, and children that stay alive over all single trials; a proof starts processes of its own."""

    def __init__(self, model: Path, children: Children, tokens: int, jobs: int = 1) -> None:
        self.model, self.children, self.tokens, self.jobs = model, children, tokens, jobs
        self.weights = weights_sha256(model)

    def prove(self, case: Case) -> tuple[Verdict, dict[str, Any]]:
        """Return the verdict, and what it took."""
        started, cpu = time.perf_counter(), _cpu_of_children()
        with Children(self.model, jobs=self.jobs) as children:
            verdict = prove(case, [], children.run, weights_sha256=self.weights, jobs=self.jobs)
        seconds, cpu = round(time.perf_counter() - started, 1), round(_cpu_of_children() - cpu, 1)
        runs = len({trial.execution for trial in verdict.trials})
        return verdict, {
            "outcome": verdict.outcome, "factors": [one.factor for one in verdict.factors], "minimal": verdict.minimal,
            "trials": runs, "seconds": seconds, "cpu_seconds": cpu, "flip": case.flip_index,
            "rounding": verdict.rounding.answer if verdict.rounding else None,
            "carried_by": verdict.history.carried_by if verdict.history else None, "claim": verdict.claim,
        }  # fmt: skip

    def run(self, case: Case, plan: dict[str, str]) -> Trace:
        """Return one trial."""
        return self.children.run(case, Treatment(plan))


def _cpu_of_children() -> float:
    """Return the CPU seconds of all processes that have ended: on a busy machine they say more than the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def natural(bench: Bench, dtype: torch.dtype, prompts: list[list[int]], part: dict[str, Any]) -> Iterator[list[Case]]:
    """Prove every prompt whose text alone and in its batch differ, batch by batch from where `part` ends.

    Yields the cases of a batch, when `part` holds what became of them.
    """
    os.environ |= {"FORENSICS_RECORD_IDS": "1", "FORENSICS_RECORD_COMPRESS": "none"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(bench.model, dtype=dtype).eval()
    loaded.generation_config = GenerationConfig(pad_token_id=loaded.config.pad_token_id or 0)
    loaded.config.pad_token_id = loaded.config.pad_token_id or 0
    for start in range(part["prompts"], len(prompts), BATCH):
        rows = prompts[start : start + BATCH]
        cases = natural_cases(loaded, rows, bench.tokens)
        proofs = [{"prompt": start + row} | bench.prove(case)[1] for row, case in cases.items()]
        part["prompts"] += len(rows)
        part["flips"] += len(proofs)
        part["proofs"] += proofs
        yield list(cases.values())


def natural_cases(model: Any, rows: list[list[int]], tokens: int) -> dict[int, Case]:
    """Return {row: case} for the prompts whose text alone and in one batch of all differ."""
    with tempfile.TemporaryDirectory() as name:
        stop = install(Path(name) / "log")
        for row, ids in enumerate(rows):
            generate(model, [ids], [f"alone-{row}"], tokens)
        generate(model, rows, [f"batch-{row}" for row in range(len(rows))], tokens)
        stop()
        with Store.open(Path(name) / "store.duckdb", create=True) as store:
            load(sorted((Path(name) / "log").glob("*.jsonl")), store, None)
            cases = {row: _case(store, row) for row in range(len(rows))}
    return {row: case for row, case in cases.items() if case is not None}


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


def built_cases(
    bench: Bench, prompts: list[list[int]], each: int, known: Sequence[Known] = KNOWN
) -> list[tuple[Case, set[str]]]:
    """Return (case, true factors): arms executed under plans that differ in known factors and in one innocent one.

    The innocent one is kept only where exchanging it alone changes no bit of either arm.
    """
    found = []
    for on, off in known:
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


def decoy(bench: Bench, cases: list[Case], count: dict[str, int]) -> None:
    """Exchange pins that have nothing to do with the flip in both arms; count what would pass for proof."""
    for case in cases:
        count["cases"] += 1
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
            found = {
                "decoys": True,
                "would pass on tokens one way": restores or induces,
                "would pass on tokens both ways": restores and induces,
                "pass as proof": bits,
            }
            for name, passes in found.items():
                count[name] = count.get(name, 0) + passes


def overhead(model: Path, ids: list[int], tokens: int, runs: int = 9) -> dict[str, float]:
    """Return the median CPU seconds of a trial and of plain generate of the same tokens, and the median of the ratio.

    Model loaded, one process, one thread, in pairs whose order changes.
    """
    case = Case("", tuple(ids), {"temperature": 0, "max_tokens": tokens}, "argmax",
                {"engine": "transformers", "dtype": "bfloat16"}, Arm("a", "a", BASE), Arm("b", "b", BASE))  # fmt: skip
    engine = Engine(case, str(model))
    loaded, batch = engine.models.load("bfloat16"), torch.tensor([ids])

    def trial() -> None:
        assert engine.run(Treatment(BASE)).missing is None

    def plain() -> None:
        loaded.generate(
            batch, attention_mask=torch.ones_like(batch), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )

    pairs = []
    for run in range(runs + 1):
        times = {}
        for one in (trial, plain) if run % 2 else (plain, trial):
            started = time.process_time()
            one()
            times[one] = time.process_time() - started
        pairs.append((times[trial], times[plain]))
    engine.stop()
    warm = pairs[1:]
    ratio = statistics.median(one / other for one, other in warm)
    seconds = [round(statistics.median(values), 4) for values in zip(*warm, strict=True)]
    return {"tokens": tokens, "trial": seconds[0], "generate": seconds[1], "ratio": round(ratio, 2)}


def main() -> None:
    """Measure, write the evidence, print a summary. A second run goes on after the last batch of the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--built", type=int, default=3, help="cases a known factor")
    parser.add_argument("--decoyed", type=int, default=25, help="cases on which decoys are tried")
    parser.add_argument("--jobs", type=int, default=1, help="trials of a proof at once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = held_out_prompts(options.model)[: options.prompts]
    about: dict[str, Any] = {
        "command": f"python tools/prove_flips.py MODEL OUT --prompts {options.prompts} --tokens {options.tokens} "
        f"--built {options.built} --decoyed {options.decoyed}"
        + (f" --jobs {options.jobs}" if options.jobs > 1 else ""),
        "machine": {"cpu": cpu_facts(), "versions": library_versions(), "threads": 1},
        "model": {"name": options.model.name, "weights_sha256": weights_sha256(options.model)},
    }
    evidence = about | {name: value for name, value in begun(options.out, about).items() if name not in about}
    if "overhead" not in evidence:
        evidence["overhead"] = overhead(options.model, prompts[0], options.tokens)
    with Children(options.model) as children:
        bench = Bench(options.model, children, options.tokens, options.jobs)
        tried = evidence.setdefault("decoys", {"cases": 0})
        for dtype in (torch.bfloat16, torch.float32):
            part = evidence.setdefault(
                f"natural {dtype}".replace("torch.", ""), {"prompts": 0, "flips": 0, "proofs": []}
            )
            for cases in natural(bench, dtype, prompts, part):
                if dtype == torch.bfloat16:
                    decoy(bench, cases[: options.decoyed - tried["cases"]], tried)
                save(options.out, evidence)
                print(f"{dtype}: {part['prompts']} prompts, {part['flips']} flips", flush=True)
        evidence["continuous batching"] = continuous_outcomes(bench, prompts)
        known = built_cases(bench, prompts, options.built) if options.built else []
        decoy(bench, [case for case, _ in known][: options.decoyed - tried["cases"]], tried)
        results = [(bench.prove(case)[1], truth) for case, truth in known]
        evidence["known factors"] = [one | {"truth": sorted(truth)} for one, truth in results]
        save(options.out, evidence)
    print(summary(evidence))


def begun(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return what the same command has measured of the same model on the same machine, if it was ended before."""
    if not path.exists():
        return {}
    evidence: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = all(evidence.get(name) == value for name, value in about.items())
    return evidence if same and "known factors" not in evidence else {}


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
            trials, seconds = ([one[key] for one in part["proofs"]] for key in ("trials", "cpu_seconds"))
            lines.append(
                f"  at most {max(trials)} trials and {max(seconds)} CPU s a proof, median {statistics.median(seconds)}"
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
