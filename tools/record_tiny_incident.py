"""Record an incident with the tiny model: prompts alone, twice, then the same prompts in one left-padded batch.

Plain `model.generate` under the recorder, with token ids. Batches of held-out prompts are tried in order until one
holds a request whose greedy tokens depend on the batch; only that batch's log is kept.

    python tools/record_tiny_incident.py fixtures/models/tiny-llama fixtures/incidents/transformers-tiny-batch/log
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import tempfile
from pathlib import Path

import torch
from train_tiny_model import held_out_prompts
from transformers import AutoModelForCausalLM, PreTrainedModel

from replay.engines.transformers import install, request_ids

BATCH, NEW_TOKENS = 8, 48
IntLists = list[list[int]]


def generate(model: PreTrainedModel, prompts: IntLists, names: list[str], tokens: int = NEW_TOKENS) -> IntLists:
    """Continue prompts greedily in one left-padded batch; the end-of-text token stops a row."""
    width, pad = max(map(len, prompts)), model.config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    with request_ids(names):
        output = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
    return [cut(row, model.config.eos_token_id) for row in output[:, width:].tolist()]


def cut(tokens: list[int], end: int) -> list[int]:
    """Return the tokens up to and including the first end-of-text token."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def record(model: PreTrainedModel, prompts: IntLists, directory: Path) -> dict[str, int]:
    """Record each prompt alone, twice, and all in one batch; return {request: first differing token}."""
    os.environ["FORENSICS_RECORD_IDS"] = "1"
    os.environ["FORENSICS_RECORD_LOGITS_SHA256"] = "1"
    os.environ["FORENSICS_RECORD_COMPRESS"] = "none"  # a fixture is compressed once, at the end, without a time stamp
    stop = install(directory)
    try:
        alone = [generate(model, [ids], [f"alone-{row}"])[0] for row, ids in enumerate(prompts)]
        again = [generate(model, [ids], [f"again-{row}"])[0] for row, ids in enumerate(prompts)]
        together = generate(model, prompts, [f"batch-{row}" for row in range(len(prompts))])
    finally:
        stop()
    if again != alone:
        raise SystemExit(
            "two runs of a prompt alone differ: this machine does not repeat itself, so no batch is to blame"
        )
    pairs = enumerate(zip(alone, together, strict=True))
    return {
        f"batch-{row}": next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        for row, (one, other) in pairs
        if one != other
    }


def main() -> None:
    """Record batch after batch until one diverges, and write its log compressed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--all", action="store_true", help="keep every batch that diverges, in folders of its own")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    prompts = held_out_prompts(options.model)
    for start in range(0, len(prompts) - BATCH + 1, BATCH):
        with tempfile.TemporaryDirectory() as name:
            flips = record(model, prompts[start : start + BATCH], Path(name))
            print(f"prompts {start} to {start + BATCH - 1}: {flips or 'no divergence'}")
            if flips:
                keep(Path(name), options.log / str(start) if options.all else options.log)
                if not options.all:
                    return


def keep(recorded: Path, log: Path) -> None:
    """Compress the finished log into its place; the key of the token tags stays behind."""
    log.mkdir(parents=True, exist_ok=True)
    for path in sorted(recorded.glob("*.jsonl")):
        with path.open("rb") as source, gzip.GzipFile(log / f"{path.name}.gz", "wb", mtime=0) as target:
            shutil.copyfileobj(source, target)


if __name__ == "__main__":
    main()
