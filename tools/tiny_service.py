"""A small text service, as somebody might have written it: plain transformers, knows nothing of the recorder.

Serves every prompt alone, twice, and then the same prompts in left-padded batches of eight, greedily.

    forensics record --with-ids -o recording -- python tools/tiny_service.py fixtures/models/tiny-llama
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 8
PROMPTS = (
    "The operator module exports a set of functions", "Return a new string object with", "class Queue:\n    def put",
    "Raise ValueError if the argument", "This method is called when", "An iterator over the lines of the file",
    "import os\n\ndef main():", "The default value is None, which means that the timeout",
    "If the optional argument is given, it must be a callable that takes", "for key in sorted(mapping):\n    print",
    "Objects are compared by", "The following example shows how to open a file and read", "with open(path) as f:",
    "A dictionary display yields a new dictionary object. If a comma-separated sequence of",
    "Create a temporary directory and", "The exception is raised", "Note that this function does not",
    "try:\n    value = int(text)\nexcept", "Decode the bytes using the codec registered for encoding and",
    "When a function is called, the arguments are", "Deprecated since version 3", "See also the documentation of the",
    "Socket objects have the following methods, which correspond to the system calls", "Return True if all elements",
    "The build process first collects", "Names refer to objects. Names are introduced by", "In this mode",
    "The expression is evaluated in", "Instances of this class represent", "Change the current working directory",
    "A slot wrapper for an attribute of", "Compile a regular expression pattern, returning",
)  # fmt: skip


def main() -> None:
    """Serve the prompts alone and in batches; print how many answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--max-tokens", type=int, default=48)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()

    def serve(prompts: tuple[str, ...]) -> list[str]:
        batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=args.max_tokens)
        texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    alone = [serve((prompt,))[0] for prompt in PROMPTS]
    again = [serve((prompt,))[0] for prompt in PROMPTS]
    loaded = [text for start in range(0, len(PROMPTS), BATCH) for text in serve(PROMPTS[start : start + BATCH])]
    repeats = sum(one != other for one, other in zip(alone, again, strict=True))
    differ = sum(one != other for one, other in zip(alone, loaded, strict=True))
    print(
        f"{len(PROMPTS)} prompts: {repeats} answers differ between two idle runs, "
        f"{differ} between idle and a batch of {BATCH}"
    )


if __name__ == "__main__":
    sys.exit(main())
