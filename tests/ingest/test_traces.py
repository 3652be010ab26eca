"""Traces of other tools: what was recorded here reads as what is known of it, and nothing that is broken escapes."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import sqlite3
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forensics.ingest
import forensics.json_stream
from forensics.errors import ForensicsError
from forensics.ingest import flight_recorder, jsonl, kineto, library_log, nsys
from forensics.load import load
from forensics.registry import members
from forensics.store import Store
from forensics.subject import Subject
from forensics.traces import MarkedSteps, collective, element_bytes
from forensics.values import Rejected

if TYPE_CHECKING:
    from types import ModuleType

TRACES = Path(__file__).parents[2] / "fixtures" / "traces"
GLOO, VERBOSE = TRACES / "gloo-slow-rank", TRACES / "tiny-llama-verbose"
SAMPLES = Path(__file__).parents[3] / "shared" / "samples"
FILES = {
    "kineto": GLOO / "rank_2.pt.trace.json.gz", "flight_recorder": GLOO / "nccl_trace_rank_2",
    "library_log": VERBOSE / "server.log.gz",
}  # fmt: skip
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LT = (
    "[2026-04-02 10:11:12][cublasLt][7][Trace][cublasLtMatmul] A=0X1 Adesc=[type=R_16BF rows=2304 cols=768 ld=2304] "
    "B=0X2 Bdesc=[type=R_16BF rows=2304 cols=144 ld=2304] D=0X3 Ddesc=[type=R_16BF rows=768 cols=144 ld=768] "
    "computeDesc=[computeType=COMPUTE_32F transa=OP_T] algo=[algoId=66 tile=MATMUL_TILE_64x16] workSpace=0X4 "
    "workSpaceSizeInBytes=33554432 beta=0"
)


def records(member: ModuleType, path: Path) -> list[Any]:
    return [entry.record for entry in member.read(path, path.stat().st_size)]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture
def store() -> Any:
    with Store.in_memory() as opened:
        yield opened


# -- what was recorded here


def test_the_flight_recorder_shows_who_came_late() -> None:
    arrivals = defaultdict(dict)
    for rank in range(4):
        for one in records(flight_recorder, GLOO / f"nccl_trace_rank_{rank}"):
            assert (one["rank"], one["comm_id"]) == (rank, "0")
            arrivals[one["seq_no"], one["op"]][rank] = one["start_ts"]
    reduced = [by_rank for (_, op), by_rank in sorted(arrivals.items()) if op == "all_reduce"]
    assert len(reduced) == 7  # one before the steps
    late = [max(by_rank, key=by_rank.__getitem__) for by_rank in reduced[4:]]
    assert late == [2, 2, 2]
    assert all(max(by_rank.values()) - min(by_rank.values()) > 0.02 for by_rank in reduced[4:])
    assert {one["bytes"] for one in records(flight_recorder, GLOO / "nccl_trace_rank_0") if "bytes" in one} >= {4096}


def test_a_dump_in_json_says_the_same() -> None:
    as_json = records(flight_recorder, GLOO / "nccl_trace_rank_0.json")
    assert as_json == records(flight_recorder, GLOO / "nccl_trace_rank_0")


def test_the_profiler_shows_the_waiting_of_the_others() -> None:
    waited = {}
    for rank in range(4):
        of_rank = records(kineto, GLOO / f"rank_{rank}.pt.trace.json.gz")
        assert Counter(one["op"] for one in of_rank) == {"all_reduce": 6, "all_gather": 6}
        assert {one["rank"] for one in of_rank} == {rank}
        waited[rank] = [one["comm_ms"] for one in of_rank if one["op"] == "all_reduce" and one["engine_step"] >= 3]
    assert all(len(ms) == 3 and min(ms) > 20 for rank, ms in waited.items() if rank != 2), waited
    assert max(waited[2]) < min(ms for rank in (0, 1, 3) for ms in waited[rank])


def test_both_tools_put_a_collective_at_one_time() -> None:
    called = [
        one["start_ts"] for one in records(flight_recorder, GLOO / "nccl_trace_rank_1") if one["op"] == "all_reduce"
    ]
    worked = [one["start_ts"] for one in records(kineto, GLOO / "rank_1.pt.trace.json.gz") if one["op"] == "all_reduce"]
    waits = [other - one for one, other in zip(called[1:], sorted(worked), strict=True)]
    assert all(0 < wait < 1e-3 for wait in waits[1:]), waits  # the first one waited for its thread


def test_libraries_tell_implementation_shape_and_time() -> None:
    calls = records(library_log, VERBOSE / "server.log.gz")
    assert [one["seq"] for one in calls] == list(range(len(calls)))
    dnn = [one for one in calls if one["name"].startswith("brg_matmul")]
    assert {one["shape"].split(",")[0] for one in dnn} >= {"m=8", "m=1", "m=16", "m=2"}
    assert all(one["start_ts"] > 1e9 and one["dur_us"] > 0 for one in dnn)
    mkl = [one for one in calls if one["name"] == "GEMM_BF16BF16F32"]
    assert mkl
    assert all(one["algo"] == {"cnr": "OFF", "nthr": "1"} and "start_ts" not in one for one in mkl)


def test_a_line_of_cublaslt(tmp_path: Path) -> None:
    log = written(tmp_path / "a.log", f"INFO ready\n{LT}\n{LT.replace('algoId', 'new=1 algoId')}\nbye\n".encode())
    good, bad = library_log.read(log, log.stat().st_size)
    assert library_log.detect(log.read_bytes())
    assert (good.line, good.record["shape"], good.record["workspace_bytes"]) == (2, "m=144,n=768,k=2304", 33554432)
    assert (good.record["algo"]["id"], good.record["algo"]["tile"], good.record["algo"]["splitk"]) == (66, "64x16", 1)
    assert "start_ts" not in good.record
    assert (bad.line, bad.record.reason) == (3, "a product of cuBLASLt with an attribute that we do not know")


# -- the store


@pytest.mark.parametrize("path", [*FILES.values(), GLOO / "nccl_trace_rank_0.json"], ids=lambda path: path.name)
def test_a_second_time_all_are_duplicates(path: Path, store: Store) -> None:
    subject = Subject("r1", "a")
    (first,) = load([path], store, subject=subject)
    assert first.read == first.stored > 10
    (again,) = load([path], store, subject=subject)
    assert (again.read, again.duplicates) == (first.read, first.read)
    counts = dict(store.ask("counts").iter_rows())
    assert counts["kernel"] + counts["collective"] == first.stored


def test_pickle_and_json_of_one_dump_are_one(store: Store) -> None:
    both = load([GLOO / "nccl_trace_rank_0", GLOO / "nccl_trace_rank_0.json"], store, subject=Subject("r1"))
    assert both[0].stored == both[1].duplicates == both[1].read


def test_a_log_that_grew_is_told_apart_from_what_was_read(tmp_path: Path, store: Store) -> None:
    text = gzip.decompress(FILES["library_log"].read_bytes())
    cut = text.index(b"\n", len(text) // 2) - 5
    path = written(tmp_path / "server.log", text[:cut])
    (first,) = load([path], store, subject=Subject("r1"))
    assert first.quarantined == 1  # the torn line
    path.write_bytes(text)
    (second,) = load([path], store, subject=Subject("r1"))
    assert second.quarantined == 0
    assert second.duplicates == first.stored
    assert second.read == len(records(library_log, FILES["library_log"]))


def test_the_run_of_a_trace_has_to_be_said(store: Store) -> None:
    with pytest.raises(ForensicsError, match="a trace \\(kineto\\), which knows no run") as error:
        load([FILES["kineto"]], store)
    assert (error.value.exit_code, error.value.hint[:15]) == (3, "say which: --ru")
    load([FILES["library_log"]], store, subject=Subject("r1", "a", 0))
    for other in (Subject("r2", "a", 0), Subject("r1", None, 0), Subject("r1", "a")):
        with pytest.raises(ForensicsError, match="on file already with --run r1 --replica a --rank 0"):
            load([FILES["library_log"]], store, subject=other)
    with pytest.raises(ForensicsError, match="of rank 2, as it says itself, not 1"):
        load([GLOO / "nccl_trace_rank_2"], store, subject=Subject("r1", rank=1))
    assert store.run("SELECT DISTINCT run_id, replica_id, rank FROM kernel") == [("r1", "a", 0)]


def test_of_a_folder_what_states_its_run_is_filed_and_the_trace_is_skipped(store: Store) -> None:
    log, trace = load([VERBOSE], store)
    assert log.stored > 0
    assert trace.skipped == "a trace (library_log), which knows no run"
    with pytest.raises(ForensicsError, match="every log here states its own"):
        load([VERBOSE / "run.jsonl.gz"], store, subject=Subject("r1"))


def test_a_rank_that_nobody_states_is_asked_for(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "dump_2026"
    shutil.copy(GLOO / "nccl_trace_rank_1", path)
    assert load([path], store, subject=Subject("r1"))[0].quarantined == 14
    assert {row["reason"] for row in store.ask("quarantined").to_dicts()} == {"rank is missing"}


# -- formats exclude each other


@pytest.mark.parametrize("path", [*FILES.values(), GLOO / "nccl_trace_rank_0.json", VERBOSE / "run.jsonl.gz"], ids=str)
def test_one_format_recognises_a_file(path: Path) -> None:
    head = path.read_bytes()
    assert len([name for name, member in members(forensics.ingest).items() if member.detect(head)]) == 1


def test_a_trace_on_one_line_is_no_log() -> None:
    whole = json.loads(gzip.decompress(FILES["kineto"].read_bytes()))
    line = json.dumps(whole).encode()
    assert kineto.detect(line)
    assert not jsonl.detect(line)
    assert not jsonl.detect(line[: len(line) // 2])  # as the beginning of a large one
    assert not jsonl.detect((GLOO / "nccl_trace_rank_0.json").read_bytes())


def test_a_log_that_quotes_a_library_stays_a_log() -> None:
    head = json.dumps({"kind": "event", "what": "x", "detail": {"said": f"\n{LT}\n"}}).encode() + b"\n" + LT.encode()
    assert jsonl.detect(head)
    assert not library_log.detect(head)
    assert not library_log.detect(b"onednn_verbose is a word\nMKL_VERBOSE too\n[cublasLt] as well\n")


# -- hostile and broken


class _Payload:
    def __reduce__(self) -> Any:
        return (Path("pwned").touch, ())


@pytest.mark.parametrize(
    "dump",
    [
        pickle.dumps({"entries": [_Payload()], "pg_config": {}}),
        pickle.dumps({"entries": [b"bytes"], "pg_config": {}}),
        pickle.dumps({"entries": [{1, 2}], "pg_config": {}}),
        pickle.dumps({"entries": {}, "pg_config": {}}),
        pickle.dumps(["entries", "pg_config"]),
        pickle.dumps({"entries": [], "pg_config": {}})[:-4],
        b"\x80\x02}X\x07\x00\x00\x00entriesr\xff\xff\xff\x7f]s.pg_config",  # a memo of 2 G places
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fentries pg_config",
    ],
)
def test_a_pickle_that_is_more_than_data_is_refused_whole(tmp_path: Path, dump: bytes, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "nccl_trace_rank_0", dump)
    assert flight_recorder.detect(dump)
    with pytest.raises(ForensicsError) as error:
        records(flight_recorder, path)
    assert error.value.exit_code == 3
    assert not Path("pwned").exists()


def test_entries_of_other_types(tmp_path: Path) -> None:
    sound = {"profiling_name": "nccl:_all_gather_base", "process_group": ("1", "tp"), "collective_seq_id": 9}
    odd = [1, {}, {"profiling_name": 3}, sound | {"input_sizes": "x", "time_created_ns": "y"}]
    path = written(tmp_path / "rank_0", pickle.dumps({"entries": odd, "pg_config": [1]}))
    *others, last = records(flight_recorder, path)
    assert all(isinstance(one, Rejected) for one in others)
    assert last == {"kind": "collective", "op": "all_gather", "comm_id": "1", "seq_no": 9}


def test_an_entry_nested_without_end(tmp_path: Path) -> None:
    deep = b"]" * 100_000 + b"a" * 99_999
    dump = b"\x80\x02}(X\x07\x00\x00\x00entries](}X\x01\x00\x00\x00x" + deep + b"seX\x09\x00\x00\x00pg_config}u."
    path = written(tmp_path / "rank_0", dump)
    (entry,) = flight_recorder.read(path, len(dump))
    assert (entry.record.reason, entry.raw[:8]) == ("an entry without profiling_name", b"an entry")


def trace(events: list[dict[str, Any]], **top: Any) -> bytes:
    whole = {"schemaVersion": 1, "deviceProperties": [], "baseTimeNanoseconds": 10**18, **top}
    return json.dumps(whole | {"traceEvents": events}).encode()


def test_a_kernel_of_nccl_is_a_kernel_and_a_collective(tmp_path: Path) -> None:
    def event(category: str, name: str, start: float, took: float, **args: Any) -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "pid": 7, "tid": 1, "ts": start, "dur": took, "args": args}

    call = {
        "Collective name": "allreduce", "In msg nelems": 100, "dtype": "BFloat16", "Process Group Name": "3", "Seq": 8,
    }  # fmt: skip
    content = trace(
        [
            event("kernel", "ncclDevKernel_AllReduce", 70.0, 10.5, **{"External id": 5, "correlation": 2}),
            event("user_annotation", "engine_step=4", 0.0, 50.0),
            event("user_annotation", "execute_context_0(0)_generation_32(32)", 50.0, 50.0),
            event("cpu_op", "record_param_comms", 1.0, 2.0, **call, **{"External id": 5}),
            event("cpu_op", "aten::addmm", 4.0, 2.0, **{"External id": 6, "Input Dims": [[9], [32, 64], [64, 9]]}),
            event("cuda_runtime", "cudaLaunchKernel", 5.0, 1.0, correlation=2),
            event("cuda_runtime", "cudaLaunchKernel", 55.0, 1.0, correlation=3),
            event(
                "kernel",
                "nvjet",
                90.0,
                1.5,
                **{"External id": 6, "correlation": 3, "grid": [1, 2, 3], "block": [4, 1, 1]},
            ),
            event("cpu_op", "record_param_comms", 60.0, 2.0, **call | {"Seq": 9}, **{"External id": 7}),
        ],
        distributedInfo={"rank": 3},
    )
    kernel, reduced, product, call_only = records(kineto, written(tmp_path / "t.json", content))
    assert (kernel["engine_step"], kernel["dur_us"], kernel["rank"]) == (4, 10.5, 3)
    assert (reduced["op"], reduced["bytes"], reduced["comm_id"], reduced["seq_no"]) == ("all_reduce", 200, "3", 8)
    assert (reduced["comm_ms"], reduced["engine_step"]) == (0.0105, 4)
    assert reduced["end_ts"] - reduced["start_ts"] == pytest.approx(10.5e-6, abs=1e-6)
    assert product["launch"] == "grid=1x2x3,block=4x1x1"
    assert (product["op"], product["shape"]) == ("aten::addmm", "m=32,n=9,k=64")
    assert "engine_step" not in product  # its launch lies in a range that says what the step held, not which it was
    assert (call_only["seq_no"], call_only["start_ts"]) == (9, pytest.approx(1e9 + 60e-6, abs=1e-6))
    assert "comm_ms" not in call_only


def test_without_a_base_only_a_calendar_time_is_a_time(tmp_path: Path) -> None:
    event = {"cat": "kernel", "name": "k", "dur": 1, "args": {}}
    content = trace([event | {"ts": 5.0}, event | {"ts": 1.7e15}], baseTimeNanoseconds=None)
    relative, calendar = records(kineto, written(tmp_path / "t.json", content))
    assert "start_ts" not in relative
    assert calendar["start_ts"] == 1.7e9


def test_a_broken_event_is_set_aside_and_a_torn_trace_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    good = '{"name": "k\\"}{", "cat": "kernel", "ts": 1, "dur": 2, "args": {}}'
    bad = (
        good.replace("2", "inf"),
        good.replace('"ts": 1', '"ts": "1"'),
        good.replace("2", "-2"),
        good.replace("1", "9e99"),
    )
    whole = '{"schemaVersion": 1, "deviceProperties": [], "traceEvents": [' + ",\n".join([good, *bad, good]) + "]}"
    for piece in (3, 1 << 20):
        monkeypatch.setattr("forensics.compression.PIECE", piece)
        found = list(kineto.read(written(tmp_path / "t.json", whole.encode()), len(whole)))
        assert [isinstance(one.record, Rejected) for one in found] == [False, True, True, True, True, False]
        assert [one.line for one in found] == [1, 2, 3, 4, 5, 6]
        assert all(whole.encode()[one.offset :].startswith(one.raw) for one in found)
    torn = records(kineto, written(tmp_path / "t.json", whole[:-40].encode()))
    assert "breaks off" in torn[-1].reason
    monkeypatch.setattr("forensics.compression.PIECE", 64)
    monkeypatch.setattr(forensics.json_stream, "MAX_VALUE_BYTES", 200)
    long = whole.replace('"k', '"' + "k" * 2000, 1).encode()
    assert "longer than" in records(kineto, written(tmp_path / "t.json", long))[-1].reason


def test_a_trace_of_too_many_events_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("forensics.profiler.MOST_LINKS", 1)
    events = [{"cat": "cpu_op", "name": "a", "ts": 1, "dur": 1, "args": {"External id": n}} for n in range(3)]
    with pytest.raises(ForensicsError, match="more than 1 operators"):
        records(kineto, written(tmp_path / "t.json", trace(events)))


@FEW
@given(data=st.data(), name=st.sampled_from(sorted(FILES)))
def test_no_damage_escapes_as_a_traceback(tmp_path: Path, data: st.DataObject, name: str) -> None:
    whole = FILES[name].read_bytes()
    content = bytearray(gzip.decompress(whole) if whole.startswith(b"\x1f\x8b") else whole)
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path / "damaged_1", bytes(content[: data.draw(st.integers(1, len(content)))]))
    with Store.in_memory() as opened:
        try:
            (summary,) = load([path], opened, subject=Subject("r1", rank=1))
        except ForensicsError as error:
            assert error.exit_code == 3  # noqa: PT017 - a damaged file may also be read
        else:
            assert summary.read == summary.stored + summary.merged + summary.duplicates + summary.quarantined


# -- what the readers share


@pytest.mark.parametrize(
    ("span", "step"),
    [((1, 2), 1), ((0, 8), 1), ((7, 9), None), ((9, 9.5), None), ((15, 20), 2), ((35, 50), None), ((-1, 0), None)],
)
def test_a_span_is_of_the_only_marked_step_that_holds_it(span: tuple[float, float], step: int | None) -> None:
    assert MarkedSteps([(30, 40, 3), (8, 20, 2), (0, 10, 1)]).of(*span) == step


@pytest.mark.parametrize(
    ("name", "op"),
    [("nccl:_all_gather_base", "all_gather"), ("allreduce", "all_reduce"), ("_reduce_scatter_base", "reduce_scatter"),
     ("gloo:all_reduce", "all_reduce"), ("nccl:send 0->1", "send")],
)  # fmt: skip
def test_a_collective_has_one_name(name: str, op: str) -> None:
    assert collective(name) == op


def test_a_type_of_unknown_size_has_none() -> None:
    assert [element_bytes(name) for name in ("Float", "c10::BFloat16", "float", "Float8_e4m3fn", "QInt4")] == [
        4, 2, 4, 1, None,
    ]  # fmt: skip


# -- Nsight Systems


def export(path: Path, *, launches: bool = True, session: bool = True) -> Path:
    """Write an export with the tables and columns of schema 3.25 that are read. No real one may stand in here."""
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT)")
        made.executemany("INSERT INTO StringIds VALUES (?, ?)", [(1, "gemm<2>"), (2, "gemm"), (3, "engine_step=7")])
        columns = (
            "start, end, deviceId, streamId, demangledName, shortName, gridX, gridY, gridZ, blockX, blockY, blockZ"
        )
        made.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL ({columns}, correlationId, globalPid)")
        kernel = (1, 2, 5, 6, 7, 8, 9, 10)
        rows = [
            (100, 350, 0, *kernel, 11, 1 << 24),
            (400, 500, 1, *kernel, 12, 2 << 24),
            ("x", 1, 1, *kernel, 13, 1 << 24),
        ]
        rows = [(a, b, c, 4, *rest) for a, b, c, *rest in rows]
        made.executemany(f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES ({', '.join('?' * 14)})", rows)
        if launches:
            made.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start, end, globalTid, correlationId)")
            launched = [(20, 25, (1 << 24) + 5, 11), (20, 25, (2 << 24) + 5, 12), (20, 25, (2 << 24) + 5, 11)]
            made.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, ?, ?)", launched)
            made.execute("CREATE TABLE NVTX_EVENTS (start, end, globalTid, text, textId)")
            sized = "aten::mm, seq = 1, op_id = 3, sizes = [[4, 8], [8, 2]], input_op_ids = [(2,0)]"
            ranges = [
                (0, 90, (1 << 24) + 5, None, 3), (10, 30, (1 << 24) + 5, "aten::linear, op_id = 2", None),
                (11, 29, (1 << 24) + 5, sized, None), (12, 13, (1 << 24) + 5, "aten::empty, op_id = 4", None),
                (15, 90, (2 << 24) + 6, None, 3), (90, None, (2 << 24) + 5, "mark", None),
            ]  # fmt: skip
            made.executemany("INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?, ?)", ranges)
        if session:
            made.execute("CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs)")
            made.execute("INSERT INTO TARGET_INFO_SESSION_START_TIME VALUES (?)", (10**18,))
    made.close()
    return path


def test_an_export_gives_kernels_with_the_ranges_around_their_launch(tmp_path: Path) -> None:
    path = export(tmp_path / "a.sqlite")
    assert nsys.detect(path.read_bytes())
    marked, bare = (one for one in records(nsys, path) if not isinstance(one, Rejected))
    assert (marked["name"], marked["op"], marked["shape"], marked["engine_step"]) == (
        "gemm<2>",
        "aten::mm",
        "m=4,n=2,k=8",
        7,
    )
    assert (marked["start_ts"], marked["dur_us"], marked["launch"]) == (1e9 + 1e-7, 0.25, "grid=5x6x7,block=8x9x10")
    assert (bare["device_index"], bare["stream"], bare["dur_us"]) == (1, 4, 0.1)
    assert not {"op", "engine_step", "rank"} & bare.keys()  # the range is of another thread
    (rejected,) = (one for one in records(nsys, path) if isinstance(one, Rejected))
    assert "without name, start and end" in rejected.reason


def test_an_export_without_launches_or_without_a_wall_clock(tmp_path: Path) -> None:
    first, *_ = (one for one in records(nsys, export(tmp_path / "a", launches=False)) if isinstance(one, dict))
    assert "op" not in first
    first, *_ = (one for one in records(nsys, export(tmp_path / "b", session=False)) if isinstance(one, dict))
    assert "start_ts" not in first
    assert (first["clock_id"], first["mono_ns"]) == ("nsys session", 100)


def test_an_export_that_is_none_or_would_run_code_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    path = export(tmp_path / "a")
    with sqlite3.connect(path) as made:
        made.execute("DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL")
        made.execute("CREATE VIEW CUPTI_ACTIVITY_KIND_KERNEL AS SELECT load_extension('x') AS start")
    made.close()
    with pytest.raises(ForensicsError, match="without kernels"):
        records(nsys, path)
    torn = written(tmp_path / "b", export(tmp_path / "c").read_bytes()[:9000])
    with pytest.raises(ForensicsError, match="cannot be read"):
        records(nsys, torn)
    monkeypatch.setattr(nsys, "MOST_WORK", 0)
    monkeypatch.setattr(nsys, "STEPS_AT_ONCE", 10)
    with pytest.raises(ForensicsError, match="busy beyond reason"):
        records(nsys, export(tmp_path / "d"))


@FEW
@given(data=st.data())
def test_no_damage_of_an_export_escapes_as_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "whole"
    content = bytearray((whole if whole.exists() else export(whole)).read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(16, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path / "damaged", bytes(content[: data.draw(st.integers(100, len(content)))]))
    try:
        found = records(nsys, path)
    except ForensicsError as error:
        assert error.exit_code == 3  # noqa: PT017 - a damaged file may also be read
    else:
        assert len(found) < 10_000


# -- what others recorded, where it lies beside this checkout


@pytest.mark.parametrize(
    ("name", "member", "kernels", "op"),
    [
        ("nsys_h100_2gpu_1s.sqlite", nsys, 3442, "aten::mm"), ("kineto_vllm_decode.json.gz", kineto, 425, "aten::mm"),
        ("kineto_sglang_decode.json.gz", kineto, 555, "aten::copy_"),
    ],
)  # fmt: skip
def test_real_traces_of_devices(name: str, member: ModuleType, kernels: int, op: str, store: Store) -> None:
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout")
    (summary,) = load([path], store, subject=Subject("r1"))
    assert (summary.stored, summary.quarantined) == (kernels, 0)
    assert store.run("SELECT count(*) FROM kernel WHERE start_ts > 1.7e9 AND dur_us > 0") == [(kernels,)]
    assert (op,) in store.run("SELECT DISTINCT op FROM kernel")
