"""What is on record of one request in one run: selected and joined, nothing judged."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.contract import x_digest
from forensics.findings import Citation
from forensics.regimes import group_regimes, rank_regimes
from forensics.surroundings import Surroundings
from forensics.tactics import with_tactics
from forensics.timeline import Thresholds, shape_class

if TYPE_CHECKING:
    from forensics.store import Store


@dataclass(frozen=True)
class Evidence:
    """What is on record of one request in one run.

    steps: the request's step records in order; where they say nothing of the batch, the batch record does. `regime` and
    `regime_extended` are those of the worst rank, which `regime_rank` and `regime_extended_rank` name; regime_… are the
    inputs on that rank.
    members: every row of every launch that the request was part of. engine: None when the run has no engine record.
    ranks: the batch records of these launches, of every rank; steps hold what the lowest one says.
    limits: the borders of the regimes. around: what the rest of its run says, for the two arms of an incident only.
    """

    request: dict[str, Any]
    engine: dict[str, Any] | None
    steps: pl.DataFrame
    members: pl.DataFrame
    limits: Thresholds
    ranks: pl.DataFrame = field(default_factory=pl.DataFrame)
    around: Surroundings = field(default_factory=Surroundings)

    @property
    def name(self) -> str:
        """Return the id that a reader knows: the client's where there is one."""
        return str(self.request["external_req_id"] or self.request["req_id"])

    @property
    def identity(self) -> tuple[str, str, str]:
        """Return (run_id, replica_id, req_id)."""
        return self.request["run_id"], self.request["replica_id"], self.request["req_id"]

    def cite(self, step: int | None = None) -> tuple[Citation, ...]:
        """Return where the request record stands, or one of its step records."""
        if step is None:
            return (Citation(self.request["source_path"], self.request["line"]),)
        rows = self.steps.filter(pl.col("step") == step)
        return tuple(Citation(path, line) for path, line in rows.select("source_path", "line").iter_rows())

    def tokens(self) -> pl.DataFrame:
        """Return the steps that chose a token, by output position; of a repeated position the last counts."""
        return self.steps.drop_nulls("token_index").unique("token_index", keep="last").sort("token_index")

    def shapes(self) -> list[str]:
        """Return the shape class of every step."""
        return [shape_class(row) for row in self.steps.iter_rows(named=True)]

    def observes(self, kind: str, name: str) -> bool:
        """Return whether the absence of a field means something: the recorder says so, or wrote it elsewhere here."""
        claimed = json.loads((self.engine or {}).get("observes") or "{}")
        if name in claimed.get(kind, ()):
            return True
        return kind in ("step", "batch") and self.steps[name].null_count() < self.steps.height

    def decode_cfg(self, which: str = "decode_cfg_applied") -> dict[str, Any]:
        """Return the decode configuration that applied, or that was asked for; {} when it is not on record."""
        return dict(json.loads(self.request[which] or "{}"))

    def posture(self) -> dict[str, Any]:
        """Return the isolation facts of the engine record, {} when it states none."""
        return dict(json.loads((self.engine or {}).get("isolation") or "{}"))

    def model_identity(self) -> str | None:
        """Return the weights hash, else the model id, else None."""
        engine = self.engine or {}
        return engine.get("weights_sha256") or engine.get("model_id")

    def x_digest(self) -> str | None:
        """Return the digest of the effective request, None when one of its three parts is not on record."""
        ids, model = self.request["effective_token_ids_sha256"], self.model_identity()
        if ids is None or model is None or self.request["decode_cfg_applied"] is None:
            return None
        return x_digest(ids, self.decode_cfg(), model)


def gather(store: Store, request: dict[str, Any], limits: Thresholds) -> Evidence:
    """Collect the evidence of one request row."""
    where = {"run_id": request["run_id"], "replica_id": request["replica_id"]}
    engines = store.ask("engine", **where).to_dicts()
    engine = engines[0] if engines else None
    steps = store.ask("steps", **where, req_id=request["req_id"])
    numbers = steps["engine_step"].drop_nulls()
    first, last = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, -1)  # type: ignore[arg-type]
    window = where | {"first": first, "last": last}
    batches = with_tactics(store.ask("batches", **window), store.ask("products", **window), engine)
    waits = store.ask("first_scheduled", **where)
    evidence = Evidence(
        request=request,
        engine=engine,
        steps=_with_batch(steps, batches),
        members=store.ask("members", **window),
        limits=limits,
        ranks=batches,
    )
    return replace(evidence, steps=_with_regimes(evidence, batches, waits))


def _with_regimes(evidence: Evidence, batches: pl.DataFrame, waits: pl.DataFrame) -> pl.DataFrame:
    """Add the regimes. Without any batch record the steps speak for their launch (the article's flat form)."""
    facts = evidence.posture()
    shared = facts.get("cross_tenant_batching", facts.get("shared_batching"))
    strict = None if shared is None else not shared
    launch = pl.coalesce("engine_step", "step") if batches.is_empty() else pl.col("engine_step")
    steps = evidence.steps.with_columns(launch.alias("launch"))
    records = steps.with_columns(launch.alias("engine_step")) if batches.is_empty() else batches
    group = group_regimes(rank_regimes(records, waits, strict, evidence.limits))
    return steps.join(group, left_on="launch", right_on="engine_step", how="left", maintain_order="left").drop("launch")


def _with_batch(steps: pl.DataFrame, batches: pl.DataFrame) -> pl.DataFrame:
    """Fill what a step record does not say of its batch from the batch record; add what that alone says."""
    ranked = batches.sort("engine_step", "rank").unique("engine_step", keep="first")  # the lowest rank speaks
    own = {"run_id", "replica_id", "ts", "rank", "source_path", "line", "source_id", "seq", "writer", "clock_id"}
    own |= {"mono_ns", "kind", "extra", "plan", "content_hash"}
    told = [name for name in ranked.columns if name not in own | {"engine_step"}]
    shared = [name for name in told if name in steps.columns]
    joined = steps.join(
        ranked.select("engine_step", *told, pl.col("plan").alias("batch_plan")),
        on="engine_step", how="left", suffix="_of_batch", maintain_order="left",
    )  # fmt: skip
    return joined.with_columns(pl.coalesce(name, f"{name}_of_batch") for name in shared).drop(
        f"{name}_of_batch" for name in shared
    )
