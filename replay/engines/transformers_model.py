"""Load the model of a case, in whichever dtype a plan asks for, from safetensors files and without remote code."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from replay.case import CaseError
from replay.engines.faults import in_words, out_of_memory

RANDOM = "random"
"""In place of a folder: two layers with random weights, to see what a machine honours without any model."""


class Models:
    """One model in several dtypes, each loaded once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._loaded: dict[str, Any] = {}

    def load(self, dtype: str) -> Any:
        """Return the model in a dtype. Raises CaseError when it cannot be read."""
        if dtype not in self._loaded:
            from transformers import GenerationConfig

            if not isinstance(known := getattr(torch, dtype, None), torch.dtype):
                raise CaseError(f"engine.dtype: torch knows no dtype {dtype!r}")
            model = (random_model(known) if self.path == RANDOM else self._read(known)).eval()
            model.generation_config = GenerationConfig()  # the request's configuration decides, not the model's
            self._loaded[dtype] = model.to("cuda") if torch.cuda.is_available() else model
            gc.collect()
            gc.freeze()  # stays until the process ends: a collection would go through all of it several times a trial
        return self._loaded[dtype]

    def _read(self, dtype: torch.dtype) -> Any:
        from transformers import AutoModelForCausalLM

        if Path(self.path).is_dir() and not any(Path(self.path).glob("*.safetensors")):
            raise CaseError(
                f"no model can be loaded from {self.path} (no *.safetensors file, and no other format is read); "
                "see --model DIR"
            )
        try:
            return AutoModelForCausalLM.from_pretrained(
                self.path, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        except Exception as fault:
            if out_of_memory(fault):
                raise
            raise CaseError(f"no model can be loaded from {self.path} ({in_words(fault)}); see --model DIR") from None


def random_model(dtype: torch.dtype) -> Any:
    """Return a Llama of two layers whose weights come from a fixed seed."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
