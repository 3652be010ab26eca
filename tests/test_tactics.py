"""The products of a layer are told apart by shape, and a step is spoken for when all of them are known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from forensics.detectors import algorithm_change
from forensics.findings import Finding
from forensics.incident import assemble
from forensics.load import load
from forensics.store import Store
from forensics.tactics import with_tactics
from forensics.timeline import Thresholds

INCIDENT = Path(__file__).parents[1] / "fixtures" / "incidents" / "transformers-tiny-batch" / "log"
ENGINE = {"hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "head_size": 16, "tp_size": 1}
LAYER = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
FUSED = [(128, 64), (64, 64), (192, 64), (64, 96)]
ALL = "q,k,v,o,gate,up,down: f"
Row = tuple[int | None, str, str | None, str]


def products(step: int | None, m: int, shapes: list[tuple[int, int]], name: str = "f", algo: Any = None) -> list[Row]:
    said = None if algo is None else json.dumps(algo)
    return [(step, name, said, f"m={m},n={n},k={k}") for n, k in shapes]


def algorithms(rows: list[Row], engine: dict[str, Any] | None = ENGINE, **batch: Any) -> list[str | None]:
    """Return `algo_id` of the steps 1 (4 tokens) and 2 (5 tokens, padded to 8)."""
    columns = {"engine_step": [1, 2], "batch_tokens": [4, 5], "padded_tokens": [None, 8], "algo_id": [None, None]}
    schema = {"engine_step": pl.Int64, "batch_tokens": pl.Int64, "padded_tokens": pl.Int64, "algo_id": pl.String}
    batches = pl.DataFrame(columns | batch, schema=schema)
    said = {"engine_step": pl.Int64, "name": pl.String, "algo": pl.String, "shape": pl.String}
    frame = pl.DataFrame(rows, schema=said, orient="row")
    return with_tactics(batches, frame, engine)["algo_id"].to_list()


@pytest.mark.parametrize("shapes", [LAYER, FUSED, [*LAYER, (1000, 64)]])
def test_a_step_whose_products_all_ran_one_way(shapes: list[tuple[int, int]]) -> None:
    assert algorithms(products(1, 4, shapes)) == [ALL, None]


def test_ways_are_told_by_role_with_their_settings() -> None:
    rows = products(1, 4, LAYER[:-1]) + products(1, 4, LAYER[-1:], "g", {"tile": "64x16", "id": 66})
    assert algorithms(rows)[0] == "q,k,v,o,gate,up: f; down: g,id=66,tile=64x16"


def test_tensor_parallel_ranks_have_their_share_of_the_heads() -> None:
    shared = [(32, 64), (16, 64), (16, 64), (64, 32), (48, 64), (48, 64), (64, 48)]
    assert algorithms(products(1, 4, shared), ENGINE | {"tp_size": 2})[0] == ALL


@pytest.mark.parametrize("missing", sorted(set(LAYER)))
def test_half_a_step_says_nothing(missing: tuple[int, int]) -> None:
    assert algorithms(products(1, 4, [one for one in LAYER if one != missing])) == [None, None]


def test_a_shape_that_ran_two_ways_says_nothing() -> None:
    assert algorithms(products(1, 4, LAYER) + products(1, 4, [(32, 64)], "g")) == [None, None]


def test_two_widths_of_an_mlp_say_nothing() -> None:
    assert algorithms(products(1, 4, [*LAYER, (80, 64), (64, 80)])) == [None, None]


def test_records_of_no_step_speak_for_the_steps_of_their_m() -> None:
    assert algorithms(products(None, 8, LAYER)) == [None, ALL]
    assert algorithms(products(None, 8, LAYER) + products(None, 8, [(64, 96)], "g")) == [None, None]
    own = products(None, 8, LAYER) + products(2, 8, [(64, 96)], "g")
    assert algorithms(own)[1] == "q,k,v,o,gate,up: f; down: g"


def test_what_a_recorder_states_stays_and_what_is_unknown_stays_open() -> None:
    assert algorithms(products(1, 4, LAYER), algo_id=["42", None]) == ["42", None]
    assert algorithms(products(1, 4, LAYER), None) == [None, None]
    assert algorithms(products(1, 4, LAYER), ENGINE | {"head_size": None}) == [None, None]
    assert algorithms([]) == [None, None]


@pytest.mark.parametrize("other", ["g", "f"])
def test_the_detector_sees_kernels_of_a_trace(tmp_path: Path, other: str) -> None:
    """On a real incident, with kernels put beside it: its batch ran `other`, the prompts alone ran `f`."""
    (log,) = INCIDENT.glob("*.gz")
    recorded = [json.loads(line) for line in gzip.decompress(log.read_bytes()).splitlines()]
    engine = next(record for record in recorded if record.get("hidden_size"))
    hidden, inner, kv = (
        engine["hidden_size"],
        engine["num_heads"] * engine["head_size"],
        engine["num_kv_heads"] * engine["head_size"],
    )
    layer = [(inner, hidden), (kv, hidden), (hidden, inner), (2 * hidden, hidden), (hidden, 2 * hidden)]
    kernels = [
        {
            "kind": "kernel", "run_id": record["run_id"], "replica_id": record["replica_id"], "op": "matmul",
            "engine_step": record["engine_step"], "name": other if record["batch_size"] > 1 else "f",
            "shape": f"m={record['batch_tokens']},n={n},k={k}",
        }
        for record in recorded if record["kind"] == "batch" for n, k in layer
    ]  # fmt: skip
    beside = tmp_path / "kernels.jsonl"
    beside.write_text("".join(json.dumps(record) + "\n" for record in kernels))
    with Store.in_memory() as store:
        load([log, beside], store)
        found = list(algorithm_change.detect(assemble(store, "batch-6", None, Thresholds())))
    if other == "f":
        assert found == []
    else:
        (finding,) = found
        assert isinstance(finding, Finding)
        assert "algo_id 'q,k,v,o,gate,up,down: g' against 'q,k,v,o,gate,up,down: f'" in finding.says
