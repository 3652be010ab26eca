"""Record a corrupted execution: one bit of one weight flipped in memory, after the weight files were hashed.

The tiny model continues one prompt twice as it is, then with the highest exponent bit of one weight flipped (what a
memory fault does), of each of two weights in turn, and once more with both bits put back. Plain `model.generate` under
the recorder, with token ids.

    python tools/record_flipped_bit.py fixtures/models/tiny-llama fixtures/incidents/transformers-flipped-bit/log
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from record_tiny_incident import generate, keep
from train_tiny_model import held_out_prompts
from transformers import AutoModelForCausalLM, PreTrainedModel

from replay.engines.transformers import install

TOKENS = 24
WEIGHTS = {"flipped-inside": "model.layers.1.mlp.down_proj", "flipped-head": "lm_head"}
"""Request → the layer whose weight is broken while it runs."""
ROW, COLUMN = 3, 7
"""Which weight of the layer; any will do."""
EXPONENT_BIT = 1 << 14
"""The highest exponent bit of a bfloat16."""


def flip(model: PreTrainedModel, layer: str) -> None:
    """Flip the bit; once more puts it back."""
    bits = model.get_submodule(layer).weight.data.view(torch.int16)
    bits[ROW, COLUMN] ^= EXPONENT_BIT


def record(model: PreTrainedModel, prompt: list[int], directory: Path) -> dict[str, list[int]]:
    """Record the runs; return their tokens by request."""
    os.environ["FORENSICS_RECORD_IDS"] = "1"
    os.environ["FORENSICS_RECORD_LOGITS_SHA256"] = "1"
    os.environ["FORENSICS_RECORD_COMPRESS"] = "none"  # a fixture is compressed once, at the end, without a time stamp
    stop = install(directory)
    try:
        outputs = {name: generate(model, [prompt], [name], TOKENS)[0] for name in ("sound-1", "sound-2")}
        for name, layer in WEIGHTS.items():
            flip(model, layer)
            outputs[name] = generate(model, [prompt], [name], TOKENS)[0]
            flip(model, layer)
        outputs["restored"] = generate(model, [prompt], ["restored"], TOKENS)[0]
    finally:
        stop()
    return outputs


def main() -> None:
    """Record, and keep the log if the bit alone made the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("log", type=Path)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    with tempfile.TemporaryDirectory() as name:
        outputs = record(model, held_out_prompts(options.model)[0], Path(name))
        for request, tokens in outputs.items():
            print(f"{request:15} {tokens}")
        broken = [tokens for request, tokens in outputs.items() if request in WEIGHTS]
        sound = [tokens for request, tokens in outputs.items() if request not in WEIGHTS]
        if any(tokens != sound[0] for tokens in sound) or sound[0] in broken:
            raise SystemExit("a bit made no difference, or another thing made one: nothing is kept")
        keep(Path(name), options.log)


if __name__ == "__main__":
    main()
