"""Record an incident on a real vLLM server: the same requests under two states of the runtime (vllm_scenarios.py).

Needs vLLM with this package installed beside it (make test-vllm makes such an environment), openai, and a model.
Start it like this:

    python tools/record_vllm_incident.py OUT --scenario load --model MODEL_DIR --python VLLM_PYTHON

Token ids and hashes of the logits rows are recorded, so that the incident can be replayed.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import sys
from pathlib import Path

from vllm_scenarios import SCENARIOS
from vllm_server import Client, serving


def main() -> None:
    """Record the incident and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the log; must not hold one yet")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="load")
    parser.add_argument("--model", type=Path, required=True, help="model folder (tools/smollm2.py makes one)")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vLLM and this package")
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    if list(options.out.glob("*.jsonl*")):
        parser.error(f"{options.out} already holds a log; name another folder")
    options.out.mkdir(parents=True, exist_ok=True)
    answers: dict[str, str] = {}
    for life in SCENARIOS[options.scenario]:
        with serving(options.python, options.model, options.out, life.replica, life.flags) as port:
            client = Client(life.replica, port, options.max_tokens)
            asyncio.run(warm_up_and_drive(client, life.drive))
        answers |= client.answers
    report(answers)
    for log in options.out.glob("*.jsonl"):
        log.with_suffix(".jsonl.gz").write_bytes(gzip.compress(log.read_bytes(), 9, mtime=0))
        log.unlink()


async def warm_up_and_drive(client: Client, drive) -> None:  # type: ignore[no-untyped-def]
    """The first launches of a server take seconds: nobody's request must wait for them."""
    await client.ask("warmup", "Say hello.", max_tokens=4)
    await drive(client)


def report(answers: dict[str, str]) -> None:
    """Print, for each prompt, which requests got which answer, and from which character they part."""
    prompts: dict[str, dict[str, list[str]]] = {}
    for name, answer in answers.items():
        prompts.setdefault(name.rpartition("-")[2], {}).setdefault(answer, []).append(name)
    for prompt, outputs in prompts.items():
        if sum(map(len, outputs.values())) == 1:
            continue
        print(f"{prompt}: {len(outputs)} answer(s)")
        first = next(iter(outputs))
        for answer, names in outputs.items():
            pairs = zip(first, answer, strict=False)
            shared = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(answer)))
            print(f"  {', '.join(names)}: " + ("the first" if answer is first else f"from character {shared}"))


if __name__ == "__main__":
    main()
