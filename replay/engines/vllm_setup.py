"""What a trial on vLLM will run, which pins edit, and what was seen of it, from which factors are read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay.company import ALONE, NONE

if TYPE_CHECKING:
    from replay.case import Case
    from replay.company import Added, Company


@dataclass
class Setup:
    """requests, contents, added, orders: by the factors of these names in factors.v1.json. settings: of EngineArgs.

    device: as vLLM's platform here calls it, 'cpu' or another.
    """

    case: Case
    requests: str = ALONE
    contents: str = "recorded"
    added: Added | None = None
    orders: str = NONE
    settings: dict[str, Any] = field(default_factory=dict)
    model: Any = None
    device: str = "cpu"

    def load(self, dtype: str) -> None:
        """Take weights of this dtype."""
        self.settings["dtype"] = dtype


@dataclass
class Evidence:
    """What the recorder's hooks and the finished engine showed.

    company: what was to come in; added: what we put beside it; beside: for each pass of the target the tokens that each
    of these had in its launch; arrived: (request, engine step, length, hash of the ids) as the scheduler took them;
    ordered: (what, engine step) of orders that took effect; last_step: the last one that ran. limits, kv_blocks,
    caching: as the scheduler and its block pool have them. hidden_dtype: of what reached the output head.
    built: factor → what layers and caches of the engine show.
    """

    case: Case
    company: Company
    requests: str
    orders: str
    added: Added | None = None
    beside: list[tuple[int, ...]] = field(default_factory=list)
    arrived: list[tuple[str, int, int, str | None]] = field(default_factory=list)
    ordered: list[tuple[str, int]] = field(default_factory=list)
    last_step: int = 0
    origin: int = 0
    limits: dict[str, Any] = field(default_factory=dict)
    launch_tokens: int = 0
    rows: int = 0
    kv_blocks: int = 0
    caching: bool = False
    cached_tokens: int = 0
    hidden_dtype: str | None = None
    built: dict[str, str | None] = field(default_factory=dict)
