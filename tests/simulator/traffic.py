"""Who asks for what and when; and what a gateway makes of it before the engine sees it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

GREEDY = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0, "min_tokens": 0}
CONTEXT_LIMIT = 4096
TEMPLATE = 16  # tokens that the template puts around a prompt
STEP_S, PREFILL_S = 0.022, 0.014  # what a healthy launch takes
OUTPUT = 44  # tokens that background traffic asks for, on average


def sha(*parts: Any) -> str:
    """Return the sha256 of the parts as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Shaping:
    """What a gateway does to a request: tokens that it cuts, and text that it adds."""

    truncate_to: int | None = None
    template: str = "v7"
    policy: str | None = None
    tools: str | None = None
    rewrite: str | None = None


@dataclass(frozen=True)
class Ask:
    """One request as the client sent it. `prompt` names its text; equal names are equal texts."""

    req_id: str
    arrival: float
    prompt: str
    prompt_tokens: int
    output_tokens: int
    tenant: str = "t0"
    decode: dict[str, Any] = field(default_factory=lambda: dict(GREEDY))
    shaping: Shaping = field(default_factory=Shaping)
    prefix: str | None = None  # name of a prefix that it shares with others
    prefix_tokens: int = 0
    watched: bool = False

    @property
    def tokens_before(self) -> int:
        """Return the length before a cut: template and whatever was added count."""
        added = sum(24 for one in (self.shaping.policy, self.shaping.tools, self.shaping.rewrite) if one)
        return self.prompt_tokens + TEMPLATE + added

    @property
    def tokens(self) -> int:
        """Return the length of the effective prompt."""
        limit = self.shaping.truncate_to
        return self.tokens_before if limit is None else min(limit, self.tokens_before)

    @property
    def text(self) -> str:
        """Return what stands for the effective input: equal texts are equal tokens."""
        one = self.shaping
        return sha(self.prompt, one.template, one.policy, one.tools, one.rewrite, self.tokens)


def background(seed: int, stop: float, rate: float, tenants: int) -> list[Ask]:
    """Return steady traffic until `stop` (s): about `rate` rows running from the start, arrivals with jitter."""
    draw = Random(f"traffic/{seed}")
    gap = (OUTPUT * STEP_S + rate * PREFILL_S) / rate
    asks: list[Ask] = []

    def ask(when: float, least: int, most: int) -> None:
        tokens, output, tenant = draw.randint(48, 240), draw.randint(least, most), draw.randrange(tenants)
        name = f"bg-{seed}-{len(asks)}"
        asks.append(Ask(name, when, name, tokens, output, tenant=f"t{tenant}"))

    for number in range(round(rate)):  # one after the other, so that nobody waits at the beginning
        ask(number * 1.3 * PREFILL_S, 4, OUTPUT + 10)
    now = max(gap, rate * 1.3 * PREFILL_S)
    while now < stop:
        ask(now, OUTPUT - 14, OUTPUT + 14)
        now += gap * draw.uniform(0.7, 1.3)
    return asks
