"""Does `--localise` name the operator that is known to differ? Arms built from one factor whose operator is known.

python tools/localise_figures.py fixtures/models/tiny-llama docs/evidence/localise-tiny.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from prove_flips import PADDED, Bench, built_cases
from train_tiny_model import held_out_prompts

from replay.children import Children
from replay.host import cpu_facts, library_versions
from replay.prove import prove

KNOWN: list[tuple[str, tuple[dict[str, str], dict[str, str]]]] = [
    ("attention", ({"attention.backend": "math"}, {})),
    ("attention", (PADDED, {})),
    ("lm_head", ({"dtype.lm_head": "float32"}, {"dtype.lm_head": "bfloat16"})),
]
"""Role of the operators that differ → what the incident has, and what the reference has instead."""


def figures(bench: Bench, prompts: list[list[int]], each: int) -> list[dict[str, Any]]:
    """Return what localising says of each built case, beside the role that is known."""
    found = []
    for role, pair in KNOWN:
        for case, factors in built_cases(bench, prompts, each, [pair]):
            with Children(bench.model) as children:
                verdict = prove(case, ["incident"], children.run, weights_sha256=bench.weights, localise=True)
            part = verdict.localised
            first = part.first.rpartition(".")[2] if part and part.first else None
            origins = part.origins if part else ()
            found.append({
                "known": role, "factors": sorted(factors), "outcome": verdict.outcome, "first": first,
                "agrees": first == role and {one.operator for one in origins} == {role},
                "origins": [[one.operator, one.layers, one.share, one.token] for one in origins],
                "relays": [one.share for one in part.relays] if part else [], "null_holds": part and part.null_holds,
                "pass": part and part.at, "trials": len({one.execution for one in verdict.trials}),
                "detail": part and part.detail,
            })  # fmt: skip
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    """Measure, write the evidence, print how often the operator was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--each", type=int, default=3, help="cases a factor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Children(options.model) as children:
        bench = Bench(options.model, children, options.tokens)
        cases = figures(bench, held_out_prompts(options.model)[: options.prompts], options.each)
    named = sum(one["agrees"] for one in cases)
    evidence = {
        "command": f"python tools/localise_figures.py MODEL OUT --prompts {options.prompts} "
        f"--tokens {options.tokens} --each {options.each}",
        "machine": {"cpu": cpu_facts(), "versions": library_versions(), "threads": 1},
        "model": {"name": options.model.name, "weights_sha256": bench.weights},
        "cases": cases,
        "named": [named, len(cases)],
    }
    options.out.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    print(f"{named} of {len(cases)} named")


if __name__ == "__main__":
    main()
