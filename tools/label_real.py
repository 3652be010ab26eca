"""Record labelled executions: the tiny model on this CPU, one thing set at a time, many prompts each.

Every state runs in a process of its own under the recorder, and gives the same prompts. What was set is the cause
where, and only where, a prompt's answer differs from the plain state's and the plain state repeats itself; where it
does not, the pair is a look-alike, and `none` is right. The analyser is not asked.

Writes OUT/log/*.jsonl.gz and OUT/labels.json.

    python tools/label_real.py fixtures/models/tiny-llama OUT
    python -m tools.score --no-simulated --real OUT
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tiny_service import PROMPTS

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 8
POLICY = "Answer without personal data. "
Ids = list[int]


@dataclass(frozen=True)
class State:
    """One state of the service. roots: the answers that are right where it changes a token.

    against: the state that it is compared with. shape: text → text before it is tokenised; cut: share of the prompt's
    tokens that is dropped on the left. weights: standard deviation of what is added to them. head: dtype of the output
    head. share: of the tokens that are asked for. note: what the gateway says of a request.
    """

    roots: tuple[str, ...]
    says: str
    against: str = "plain"
    environment: dict[str, str] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    note: dict[str, Any] = field(default_factory=dict)
    shape: Callable[[str], str] = str
    cut: float = 0.0
    rows: int = 1
    weights: float = 0.0
    head: str | None = None
    share: float = 1.0


X, HOST = ("effective_request_drift",), ("environment_change",)
STATES = {
    "plain": State(("none",), "each prompt alone, bf16, one thread"),
    "again": State(("none",), "the same again, in another process"),
    "shorter": State(("none",), "half the tokens: a completion cut short", share=0.5),
    "wide-limit": State(("none",), "a limit that no prompt reaches", note={"context_limit": 512, "truncated": False}),
    "batch": State(("batch_recomposition",), "left-padded batches of 8", rows=BATCH),
    "pair": State(("batch_recomposition",), "left-padded batches of 2", rows=2),
    "cut": State(X, "the first third of the tokens cut off", cut=1 / 3,
                 note={"truncated": True, "trunc_reason": "gateway limit", "trunc_side": "left"}),
    "template": State(X, "another template", shape="Question: {}\nAnswer:".format,
                      note={"routing_template_version": "v8"}),
    "policy": State(X, "a policy text in front", shape=(POLICY + "{}").format,
                    note={"policy_gates": [{"gate": "privacy", "action": "injected"}]}),
    "rewrite": State(X, "a word replaced by a safety rewrite", shape=lambda text: text.replace("the", "this"),
                     note={"shaping_events": [{"what": "safety_rewrite"}]}),
    "weights": State(("weights_drift",), "weights perturbed by a thousandth", weights=1e-3),
    "penalty": State(("decode_config_drift",), "repetition penalty 1.1", generate={"repetition_penalty": 1.1}),
    "ngrams": State(("decode_config_drift",), "no three tokens twice", generate={"no_repeat_ngram_size": 3}),
    "fp32": State(("environment_change", "precision_path_change"), "loaded as float32", load={"dtype": "float32"}),
    "fp32-batch": State(("batch_recomposition",), "float32, batches of 8 against alone", "fp32", rows=BATCH,
                        load={"dtype": "float32"}),
    "isa": State(HOST, "oneDNN held to AVX2", environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "threads": State(HOST, "two threads", environment={"OMP_NUM_THREADS": "2"}),
    "eager": State(("environment_change", "algorithm_change"), "attention by the eager implementation",
                   load={"attn_implementation": "eager"}),
    "head": State(("precision_path_change",), "the output head in float32", head="float32"),
}  # fmt: skip


def serve(model_path: Path, name: str, prompts: int, tokens: int) -> None:
    """Give every prompt in this state, under the recorder that the environment asks for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from replay.engines.transformers import install, plan_facts, request_ids
    from replay.record import emit

    state, tokenizer = STATES[name], AutoTokenizer.from_pretrained(model_path)
    chosen = {"max_new_tokens": int(tokens * state.share), "do_sample": False, **state.generate}
    with TemporaryDirectory() as changed, ExitStack() as recording:
        path = _perturbed(model_path, Path(changed), state.weights) if state.weights else model_path
        model = AutoModelForCausalLM.from_pretrained(path, **{"dtype": "bfloat16", **state.load}).eval()
        if state.head:
            _widen(model, getattr(torch, state.head))
            recording.enter_context(plan_facts({"dtype.lm_head": state.head}))
        recording.callback(install())
        asked = list(enumerate(PROMPTS[:prompts]))
        for start in range(0, len(asked), state.rows):
            rows = asked[start : start + state.rows]
            ids = [tokenizer(state.shape(text))["input_ids"] for _, text in rows]
            before = [len(one) for one in ids]
            ids = [one[int(len(one) * state.cut) :] for one in ids]
            names = [f"{name}-{number}" for number, _ in rows]
            for req_id, (_, text), length in zip(names, rows, before, strict=True):
                emit("request", req_id=req_id, prompt=text, tokens_before_truncation=length,
                     decode_cfg_requested={"temperature": 0}, served_model_name="tiny", **state.note)  # fmt: skip
            width, pad = max(map(len, ids)), model.config.pad_token_id
            mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids])
            padded = torch.tensor([[pad] * (width - len(one)) + one for one in ids])
            with request_ids(names):
                model.generate(padded, attention_mask=mask, **chosen)


def _perturbed(model_path: Path, folder: Path, size: float) -> Path:
    """Save a copy of the model with something added to its weights; return where."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(model_path, folder, dirs_exist_ok=True)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
    with torch.no_grad():
        for one in model.parameters():
            one += (torch.randn(one.shape) * size).to(one.dtype)
    model.save_pretrained(folder)
    return folder


def _widen(model: Any, dtype: Any) -> None:
    """Run the output head in another dtype; the logits are of that dtype then."""
    import torch

    weight = model.lm_head.weight.detach().to(dtype)
    model.lm_head.forward = lambda hidden: torch.nn.functional.linear(hidden.to(dtype), weight)


def record(model: Path, out: Path, name: str, prompts: int, tokens: int) -> None:
    """Serve one state in a process of its own, recorded to `out`. Raises CalledProcessError."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0",
        "FORENSICS_RECORD": str(out), "FORENSICS_RECORD_IDS": "1", "FORENSICS_RECORD_LOGITS_SHA256": "1",
        "FORENSICS_RECORD_COMPRESS": "none", "FORENSICS_REPLICA": f"replica-{name}", **STATES[name].environment,
    }  # fmt: skip
    command = [sys.executable, __file__, str(model), str(out), "--state", name, "--prompts", str(prompts),
               "--tokens", str(tokens)]  # fmt: skip
    subprocess.run(command, env=environment, check=True)


def outputs(log: Path) -> dict[str, Ids]:
    """Return the output token ids of every request of an uncompressed log."""
    found: dict[str, Ids] = {}
    for path in log.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            if one["kind"] == "request" and "output_token_ids" in one:
                found[one["req_id"]] = one["output_token_ids"]
    return found


def labels(said: dict[str, Ids], states: list[str], prompts: int) -> list[dict[str, Any]]:
    """Return the pairs with what is right for them; prompts that the plain state does not repeat are left out."""
    found = []
    for name in states:
        state = STATES[name]
        for number in range(prompts if name != state.against else 0):
            ours, theirs, again = (said[f"{one}-{number}"] for one in (name, state.against, "again"))
            if again != said[f"plain-{number}"]:
                continue
            length = min(len(ours), len(theirs))
            same = ours[:length] == theirs[:length]
            found.append({"request": f"{name}-{number}", "against": f"{state.against}-{number}", "set": name,
                          "says": state.says, "roots": ["none"] if same else list(state.roots)})  # fmt: skip
    return found


def main() -> None:
    """Record all states and write the labels, or serve one state (what a child does)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, help="folder for log/ and labels.json; must not hold them yet")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the built-in prompts")
    parser.add_argument("--tokens", type=int, default=48, help="how many tokens an answer has")
    parser.add_argument("--state", choices=sorted(STATES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.state:
        serve(options.model, options.state, options.prompts, options.tokens)
        return
    log = options.out / "log"
    if log.exists():
        parser.error(f"{log} is there already; name another folder")
    for name in STATES:
        print(f"{name}: {STATES[name].says}", file=sys.stderr)
        record(options.model, log, name, options.prompts, options.tokens)
    found = labels(outputs(log), list(STATES), options.prompts)
    (options.out / "labels.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for path in sorted(log.glob("*.jsonl")):
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
        path.unlink()
    caused = sum(one["roots"] != ["none"] for one in found)
    print(f"{len(found)} pairs: {caused} with a cause, {len(found) - caused} without")


if __name__ == "__main__":
    main()
