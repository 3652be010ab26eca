"""Train the tiny Llama fixture on text that ships with Python itself.

The tests need a language model that is real (it has learnt something, so its
logits have natural near-ties) yet small enough to live in the repository and to
run in seconds on a CPU.  The corpus is the standard library's own documentation,
so that anyone with a Python interpreter can train the model again, offline.

    python tools/train_tiny_model.py --out fixtures/models/tiny-llama
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import math
import sysconfig
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterator

END, PAD = "<|endoftext|>", "<|pad|>"
VOCAB, CONTEXT, BATCH = 1024, 256, 8
PROMPTS, SHORTEST, LONGEST = 50, 16, 111
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of one module that are long enough to be prose."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= 200:
                yield text


def documents() -> list[str]:
    """Return the corpus: pydoc's topics and the stdlib's docstrings, each once, sorted.

    Copied docstrings are common in the stdlib; dropping the copies keeps them from
    landing on both sides of the held-out split.
    """
    found = {inspect.cleandoc(text) for text in topics.values()}
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for path in stdlib.rglob("*.py"):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(stdlib).parts):
            found.update(docstrings(path.read_text(encoding="utf-8")))
    return sorted(found)


def is_held_out(document: str) -> bool:
    """Assign about 5 % of the documents to the held-out side, by their content alone.

    A hash, unlike a shuffle, gives an unchanged document the same side under every
    Python version, so a later interpreter does not test on this one's training text.
    """
    return hashlib.sha256(document.encode()).digest()[0] < 13


def held_out_prompts(model_dir: Path) -> list[list[int]]:
    """Return PROMPTS openings of held-out documents, of SHORTEST to LONGEST tokens in a scattered order."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = [END + text for text in documents() if is_held_out(text)]
    rows = [ids for ids in tokenizer(texts, verbose=False)["input_ids"] if len(ids) >= LONGEST]
    span = LONGEST - SHORTEST + 1
    return [ids[: SHORTEST + 37 * i % span] for i, ids in enumerate(rows[:: max(1, len(rows) // PROMPTS)][:PROMPTS])]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; one end-of-text token doubles as beginning-of-text."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, VOCAB, special_tokens=[END, PAD], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=1024,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Concatenate the documents, each opened by the end-of-text token."""
    return torch.tensor([i for ids in tokenizer([END + t for t in texts], verbose=False)["input_ids"] for i in ids])


def tiny_llama() -> LlamaForCausalLM:
    """Build the untrained model: half of SmolLM2-135M's width, with its narrow key/value projections.

    288 -> 96 is a shape at which some CPU matrix kernels change with the number of rows.
    """
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=288,
            intermediate_size=576,
            num_hidden_layers=2,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=0,  # END
            eos_token_id=0,
            pad_token_id=1,  # PAD
        )
    )


def train(model: LlamaForCausalLM, stream: torch.Tensor, steps: int, peak_lr: float = 3e-3) -> None:
    """Run plain AdamW with a one-cycle schedule over random windows of the stream."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.1)
    model.train()
    start = time.perf_counter()
    for step in range(steps):
        offsets = torch.randint(len(stream) - CONTEXT, (BATCH, 1))
        batch = stream[offsets + torch.arange(CONTEXT)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.perf_counter() - start:.0f} s", flush=True)


def mean_loss(model: LlamaForCausalLM, stream: torch.Tensor) -> float:
    """Return nats per token over consecutive windows of at most 64 k tokens."""
    windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:256]
    with torch.inference_mode():
        losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in windows.split(BATCH)]
    return float(sum(losses) / len(windows))


def unigram_loss(seen: torch.Tensor, held_out: torch.Tensor) -> float:
    """Return nats per held-out token under the training frequencies (add-one)."""
    counts = torch.bincount(seen, minlength=VOCAB).double() + 1
    return float(-(counts / counts.sum()).log()[held_out].mean())


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write bf16 weights and a tokenizer that transformers 4 and 5 both load."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Train, save, and report the losses of the weights as saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fixtures/models/tiny-llama"))
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    texts = documents()
    train_texts = [text for text in texts if not is_held_out(text)]
    tokenizer = train_tokenizer(train_texts)
    seen = token_stream(tokenizer, train_texts)
    held_out = token_stream(tokenizer, [text for text in texts if is_held_out(text)])
    model = tiny_llama()
    print(f"{len(seen)} training, {len(held_out)} held-out tokens; {model.num_parameters()} parameters")
    train(model, seen, args.steps)
    save(model, tokenizer, args.out)

    saved = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    print(f"nats/token: train {mean_loss(saved, seen):.3f}, held-out {mean_loss(saved, held_out):.3f}")
    print(f"baselines:  unigram {unigram_loss(seen, held_out):.3f}, uniform {math.log(VOCAB):.3f}")


if __name__ == "__main__":
    main()
