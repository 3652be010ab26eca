"""Measure how often a model's greedy text depends on the batch it runs in.

Each held-out prompt is continued by 64 greedy tokens three times: alone, in a
left-padded batch of eight, and in a batch of eight prompts of equal length (against
that same shortened prompt alone).  A prompt diverges if any token differs.

    python tools/flip_rate.py fixtures/models/tiny-llama
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from train_tiny_model import END, documents, is_held_out
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

PROMPTS, NEW_TOKENS, BATCH, SHORTEST, LONGEST = 50, 64, 8, 16, 111
IntLists = list[list[int]]
Table = list[dict[str, str | int | float]]


def held_out_prompts(model_dir: Path) -> IntLists:
    """Return openings of held-out documents, of 16 to 111 tokens in a scattered order."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = [END + text for text in documents() if is_held_out(text)]
    rows = [ids for ids in tokenizer(texts, verbose=False)["input_ids"] if len(ids) >= LONGEST]
    span = LONGEST - SHORTEST + 1
    return [ids[: SHORTEST + 37 * i % span] for i, ids in enumerate(rows[:: max(1, len(rows) // PROMPTS)][:PROMPTS])]


def continue_greedily(model: PreTrainedModel, prompts: IntLists, batch: int) -> tuple[IntLists, int]:
    """Return 64 tokens per prompt, and at how many of them the two best logits are equal.

    The end-of-text token does not stop a row, so that every row has 64 decisions.
    """
    outputs: IntLists = []
    ties = 0
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        width = max(map(len, rows))
        pad = model.config.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        result = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        outputs += result.sequences[:, width:].tolist()
        best = torch.stack(result.logits).topk(2).values
        ties += int((best[..., 0] == best[..., 1]).sum())
    assert all(len(row) == NEW_TOKENS for row in outputs)
    return outputs, ties


def measure(model_dir: Path, prompts: IntLists, dtype: torch.dtype, attention: str) -> Table:
    """Compare batch 1 with both kinds of batch of eight, in one number format."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, attn_implementation=attention).eval()
    model.generation_config.eos_token_id = None
    equal = [ids[:SHORTEST] for ids in prompts]
    table: Table = []
    for name, rows in (("left-padded", prompts), ("equal-length", equal)):
        alone, ties = continue_greedily(model, rows, 1)
        together, _ = continue_greedily(model, rows, BATCH)
        table.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "batch": name,
                "diverged": sum(a != b for a, b in zip(alone, together, strict=True)),
                "prompts": len(rows),
                "exact_tie_share": ties / (len(rows) * NEW_TOKENS),
            }
        )
    return table


def main() -> None:
    """Print the table and the facts of the machine it was measured on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()

    prompts = held_out_prompts(args.model)
    dtypes = (torch.bfloat16, torch.float32)
    rows = [row for dtype in dtypes for row in measure(args.model, prompts, dtype, args.attention)]
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "attention": args.attention,
        "threads": torch.get_num_threads(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    if args.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'dtype':10}{'batch of 8':14}{'diverged':>9}{'exact ties':>12}")
    for row in rows:
        share = f"{row['diverged']}/{row['prompts']}"
        print(f"{row['dtype']:10}{row['batch']:14}{share:>9}{row['exact_tie_share']:>12.2%}")


if __name__ == "__main__":
    main()
