"""A stock vLLM OpenAI server with the recorder on, and a client that keeps every answer under the request's name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from openai import AsyncOpenAI

SERVED_AS = "smollm2-135m-instruct"
READY_SECONDS, STOP_SECONDS = 300, 60
# One thread that does not spin: a busy second core must not slow the server down.
DEFAULTS = {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip


@dataclass
class Client:
    """Asks one server. `answers`: request name → completion; the name becomes the external request id."""

    replica: str
    port: int
    max_tokens: int
    answers: dict[str, str] = field(default_factory=dict)
    _open: AsyncOpenAI | None = None

    async def ask(self, name: str, said: str | list[dict[str, str]], delay_ms: int = 0, **extra: Any) -> str:
        """Send a message, or a whole conversation, at temperature 0; return the answer. `extra`: more of the body."""
        await asyncio.sleep(delay_ms / 1000)
        reply = await self._openai().chat.completions.create(**self._body(name, said, extra))
        self.answers[name] = reply.choices[0].message.content or ""
        return self.answers[name]

    async def ask_and_interrupt(self, name: str, said: str, after: int, order: Callable[[], Awaitable[None]]) -> None:
        """Send a message and give the order when `after` pieces of the answer have come."""
        pieces: list[str] = []
        async for piece in await self._openai().chat.completions.create(stream=True, **self._body(name, said, {})):
            pieces.append(piece.choices[0].delta.content or "")
            if len(pieces) == after:
                await order()
        self.answers[name] = "".join(pieces)

    def _openai(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        url = f"http://127.0.0.1:{self.port}/v1"
        self._open = self._open or AsyncOpenAI(base_url=url, api_key="unused", timeout=600)
        return self._open

    def _body(self, name: str, said: str | list[dict[str, str]], extra: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": SERVED_AS,
            "messages": said if isinstance(said, list) else [{"role": "user", "content": said}],
            "temperature": 0,
            "max_tokens": extra.pop("max_tokens", self.max_tokens),
            "extra_headers": {"X-Request-Id": name},
            "extra_body": extra,
        }

    async def reset_cache(self, *, preempt: bool = False) -> None:
        """Empty the prefix cache as an operator does; with `preempt` running requests lose their KV too."""
        flag = "?reset_running_requests=true" if preempt else ""
        order = urllib.request.Request(f"http://127.0.0.1:{self.port}/reset_prefix_cache{flag}", method="POST")
        with await asyncio.to_thread(urllib.request.urlopen, order, timeout=60) as reply:
            reply.read()


@contextlib.contextmanager
def serving(python: str, model: Path, out: Path, replica: str, flags: Sequence[str]) -> Iterator[int]:
    """Start a server under ordinary flags, yield its port, stop it as an orchestrator does: SIGTERM, then patience."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", SERVED_AS,
        "--dtype", "bfloat16", "--enforce-eager", *flags, "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    print("$", " ".join(command), flush=True)
    recording = {
        "FORENSICS_RECORD": str(out.resolve()), "FORENSICS_RECORD_IDS": "1", "FORENSICS_RECORD_LOGITS_SHA256": "1",
        "FORENSICS_REPLICA": replica, "FORENSICS_RECORD_COMPRESS": "none", "VLLM_SERVER_DEV_MODE": "1",
    }  # fmt: skip
    said = out / f"server-{replica}.txt"
    with said.open("wb") as log:
        server = subprocess.Popen(
            command, env=DEFAULTS | os.environ | recording, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_until_ready(server, port, said)
            yield port
        finally:
            _stop(server)


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, said: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise SystemExit("the server did not come up; its last words:\n" + said.read_text(errors="replace")[-3000:])


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is not None:
        return
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"the server did not leave within {STOP_SECONDS} s of SIGTERM: killed", file=sys.stderr)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
