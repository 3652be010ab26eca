"""Record a real incident: a stock vLLM server that answers the same prompts at idle and under load.

Starts the real server with the recorder plugin on, asks each prompt alone (twice, to show what idle
repeats do), then all of them at once between neighbours, at temperature 0 through the OpenAI client.
Prints which completions differ, stops the server with SIGTERM and leaves the log in OUT_DIR.

    pip install openai
    python tools/record_vllm_incident.py OUT_DIR --model MODEL_DIR --python VLLM_PYTHON

Prefix caching is off unless asked for: a cached prefix changes the prefill too, and then two things
would differ between idle and load.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PROMPTS = {
    "refund": "A customer wants a refund for a damaged kettle. Write a short, polite reply.",
    "tides": "Explain in three sentences why there are two tides a day.",
    "sql": "Write an SQL query that lists the ten customers with the highest total order value.",
    "haiku": "Write a haiku about an old lighthouse.",
    "meeting": "Summarize: the launch moves to May, Ana owns the budget, and testing needs two more people.",
    "python": "Write a Python function that returns the median of a list of numbers.",
    "paris": "Give me a one day plan for Paris with two museums and a walk.",
    "email": "Write a short email asking a colleague to review a pull request by Friday.",
    "bread": "How do I make simple white bread? Answer in four steps.",
    "names": "Suggest five names for a small coffee shop near a harbor.",
}
NEIGHBOURS = (
    "Describe the water cycle to a child.", "List four uses of a paper clip.", "What does HTTP status 503 mean?",
    "Write a product description for a red rain jacket with four pockets and a hood that folds away.",
    "Give three tips for learning a new language.", "What is the difference between a crocodile and an alligator?",
    "Draft a notice that the elevator is out of service until Tuesday, and tell people where the stairs are.",
    "Name three rivers in Europe and the countries they cross.", "Write two sentences about autumn in the mountains.",
    "How long should I boil an egg?", "Explain recursion with an example from daily life, in at most five sentences.",
    "What should I pack for a weekend by the sea in October if the forecast says wind, rain and some sun?",
)  # fmt: skip
SERVED_AS = "smollm2-135m-instruct"
READY_SECONDS, STOP_SECONDS = 300, 60


def main() -> None:
    """Record the incident and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the log; must not hold one yet")
    parser.add_argument("--model", type=Path, required=True, help="model folder (tools/smollm2.py makes one)")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vLLM and this package")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--idle-runs", type=int, default=2, help="how often each prompt is asked alone")
    parser.add_argument("--stagger-ms", type=int, default=40, help="time between two arrivals under load")
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument("--logits-sha256", action="store_true", help="hash every sampled row of raw logits")
    parser.add_argument("--gzip", action="store_true", help="compress the log when the server is down")
    options = parser.parse_args()
    if list(options.out.glob("*.jsonl*")):
        parser.error(f"{options.out} already holds a log; name another folder")
    options.out.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = server_command(options, port)
    print("$", " ".join(command))
    with (options.out / "server.txt").open("wb") as server_log:
        server = subprocess.Popen(
            command, env=environment(options), stdout=server_log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until_ready(server, port, options.out / "server.txt")
            answers = asyncio.run(drive(options, port))
        finally:
            stop(server)
    report(answers, options.idle_runs)
    if options.gzip:
        for log in options.out.glob("*.jsonl"):
            log.with_suffix(".jsonl.gz").write_bytes(gzip.compress(log.read_bytes(), 9, mtime=0))
            log.unlink()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_command(options: argparse.Namespace, port: int) -> list[str]:
    """Return the command line of a stock server: nothing but ordinary flags."""
    caching = "--enable-prefix-caching" if options.prefix_caching else "--no-enable-prefix-caching"
    return [
        options.python, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(options.model), "--served-model-name", SERVED_AS, "--dtype", "bfloat16", "--enforce-eager",
        "--max-model-len", "1024", caching, "--host", "127.0.0.1", "--port", str(port), "--enable-request-id-headers",
    ]  # fmt: skip


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the server's environment. One thread that does not spin: a busy second core must not slow it down."""
    defaults = {
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    recording = {
        "FORENSICS_RECORD": str(options.out.resolve()),
        "FORENSICS_RECORD_IDS": "1",
        "FORENSICS_RECORD_COMPRESS": "none",  # a fixture is compressed once, as hard as can be, without a time stamp
    }
    if options.logits_sha256:
        recording["FORENSICS_RECORD_LOGITS_SHA256"] = "1"
    return defaults | os.environ | recording


def wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server answers its health check; exit with its last words if it does not."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise SystemExit("the server did not come up; its last words:\n" + log.read_text(errors="replace")[-3000:])


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server as an orchestrator does: SIGTERM, then patience."""
    if server.poll() is not None:
        return
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"the server did not leave within {STOP_SECONDS} s of SIGTERM: killed", file=sys.stderr)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


async def drive(options: argparse.Namespace, port: int) -> dict[str, dict[str, str]]:
    """Ask everything; return {arm: {prompt name: completion}}."""
    from openai import AsyncOpenAI

    answers: dict[str, dict[str, str]] = {}
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", timeout=600) as client:
        await ask(client, options, "warmup", "Say hello.", 0)
        for run in range(1, options.idle_runs + 1):
            arm = f"idle{run}"
            answers[arm] = {
                name: await ask(client, options, f"{arm}-{name}", text, 0) for name, text in PROMPTS.items()
            }
        asked = list(interleaved())
        replies = await asyncio.gather(
            *(
                ask(client, options, f"load-{name}", text, at * options.stagger_ms)
                for at, (name, text) in enumerate(asked)
            )
        )
        answers["load"] = {name: reply for (name, _), reply in zip(asked, replies, strict=True) if name in PROMPTS}
    return answers


def interleaved() -> list[tuple[str, str]]:
    """Return the load's arrival order: prompts and neighbours in turn, so that prompts meet others in every phase."""
    neighbours = [(f"neighbour{number:02d}", text) for number, text in enumerate(NEIGHBOURS)]
    order: list[tuple[str, str]] = []
    for at, prompt in enumerate(PROMPTS.items()):
        order += [*neighbours[at : at + 1], prompt]
    return order + neighbours[len(PROMPTS) :]


async def ask(client: AsyncOpenAI, options: argparse.Namespace, name: str, text: str, delay_ms: int) -> str:
    """Send one chat request under a name that becomes its external request id; return the completion."""
    await asyncio.sleep(delay_ms / 1000)
    reply = await client.chat.completions.create(
        model=SERVED_AS,
        messages=[{"role": "user", "content": text}],
        temperature=0,
        max_tokens=options.max_tokens,
        extra_headers={"X-Request-Id": name},
    )
    return reply.choices[0].message.content or ""


def report(answers: dict[str, dict[str, str]], idle_runs: int) -> None:
    """Print what repeated and what did not."""
    idle, load = answers["idle1"], answers["load"]
    repeats = [
        name for name in idle if all(answers[f"idle{run}"][name] == idle[name] for run in range(1, idle_runs + 1))
    ]
    print(f"idle: {len(repeats)} of {len(idle)} completions identical over {idle_runs} runs")
    differing = [name for name in idle if idle[name] != load[name]]
    print(f"load: {len(differing)} of {len(idle)} completions differ from idle")
    for name in differing:
        pairs = zip(idle[name], load[name], strict=False)
        shared = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(idle[name]), len(load[name])))
        print(f"  chatcmpl-load-{name}: from character {shared}")
        print(f"    idle …{idle[name][max(shared - 30, 0) : shared + 40]!r}")
        print(f"    load …{load[name][max(shared - 30, 0) : shared + 40]!r}")


if __name__ == "__main__":
    main()
