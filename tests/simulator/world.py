"""One run of one replica under some plants, and what it answers to a prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tests.simulator.causes import ASKED, LIFE, Plant
from tests.simulator.numerics import Chosen, decode
from tests.simulator.replica import Launch, simulate
from tests.simulator.traffic import GREEDY, Ask, Shaping, background

if TYPE_CHECKING:
    from collections.abc import Sequence

EARLY, TAIL = 0.45, 0.8  # s: when the quiet repeat arrives, and how long a run lasts after its last arrival
PROMPT_TOKENS, OUTPUT_TOKENS, TENANTS = 180, 40, 4
SHAPING = ("template", "policy", "tools", "rewrite", "truncate_to")
RACE_EVERY = 7  # launches of a request of which one has no fixed order of additions


@dataclass(frozen=True)
class World:
    """What one replica lives through. name: the replica; seed: of its jitter; traffic: seed of who else asks."""

    name: str
    plants: tuple[Plant, ...]
    seed: str
    traffic: int
    rate: float
    ranks: int

    @property
    def token_rule(self) -> str:
        """Return the rule by which this replica chooses among equal logits."""
        return next((one.token_rule for one in self.plants if one.token_rule), "argmax_lowest")

    @property
    def weights(self) -> str:
        """Return the name of the weights that this replica has."""
        return self.name if any(one.weights_drift for one in self.plants) else "original"

    @property
    def engine(self) -> dict[str, Any]:
        """Return the members of the engine record that the plants change."""
        return {name: one for plant in self.plants for name, one in plant.engine.items()}

    def run(self, prompt: str) -> list[Launch]:
        """Return the launches. The prompt's name changes no launch, only what the log calls it."""
        disturbances = [one for plant in self.plants for one in plant.disturbances]
        return simulate(self._asks(prompt), disturbances, ranks=self.ranks, seed=self.seed, until=LIFE + TAIL)

    def _asks(self, prompt: str) -> list[Ask]:
        early, asked = (
            Ask(f"{name}-{self.name}", when, prompt, PROMPT_TOKENS, OUTPUT_TOKENS, watched=True)
            for name, when in (("early", EARLY), ("asked", ASKED))
        )
        asked = _changed(asked, {name: one for plant in self.plants for name, one in plant.ask.items()})
        rate = next((one.rate for one in self.plants if one.rate), self.rate)
        tenants = next((one.tenants for one in self.plants if one.tenants), TENANTS)
        others = background(self.traffic, LIFE, rate, tenants) if rate else []
        return [early, asked, *others, *(one for plant in self.plants for one in plant.extra)]

    def answers(self, launches: Sequence[Launch], prompt: str) -> dict[str, list[Chosen]]:
        """Return the chosen tokens of the requests that we watch, as if their prompt were this one."""
        drift = max((one.weights_drift for one in self.plants), default=0.0)
        library = "".join(one.arithmetic for one in self.plants)
        race = any(one.race for one in self.plants)
        found: dict[str, list[Chosen]] = {}
        for ask in {row.ask.req_id: row.ask for one in launches for row in one.rows if row.ask.watched}.values():
            mine = [one for one in launches if any(row.ask.req_id == ask.req_id for row in one.rows)]
            how = [one.arithmetic + library for one in mine]
            if race:
                how[::RACE_EVERY] = [f"{one}/{ask.req_id}" for one in how[::RACE_EVERY]]
            text = replace(ask, prompt=prompt).text
            jumps = [one.now.jump for one in mine]
            found[ask.req_id] = decode(text, self.weights, how, ask.decode, self.token_rule, jumps, drift)
        return found


def _changed(ask: Ask, change: dict[str, Any]) -> Ask:
    shaping = {name: change[name] for name in SHAPING if name in change}
    if "cut" in change:
        shaping["truncate_to"] = ask.tokens - change["cut"]
    prefix = {name: change[name] for name in ("prefix", "prefix_tokens") if name in change}
    return replace(ask, shaping=replace(Shaping(), **shaping), decode={**GREEDY, **change.get("decode", {})}, **prefix)
