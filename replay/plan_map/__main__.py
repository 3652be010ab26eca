"""`python -m replay.plan_map MODEL`: the map of a model on this machine, as one JSON object on stdout.

This process needs the standard library only; the engine lives in child processes of `--python`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from replay.child_process import child_environment
from replay.children import Children
from replay.plan_map.cells import MapError
from replay.plan_map.trials import chart
from replay.trial import BAD_INPUT, UNDECIDED, USAGE, TrialError

VLLM, PROBE = "replay.engines.map_vllm", "replay.engines"


def parser() -> argparse.ArgumentParser:
    """Return the command line; `replay.engines.map_vllm` has the same."""
    parse = argparse.ArgumentParser(prog="python -m replay.plan_map", description="Which launches give the same bits.")
    parse.add_argument("model", type=Path)
    parse.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parse.add_argument("--python", default=sys.executable, help="interpreter that has the engine")
    parse.add_argument("--rows", type=int, default=32, help="most request rows of a launch")
    parse.add_argument("--tokens", type=int, default=128, help="most tokens of a launch")
    parse.add_argument("--prompt-tokens", type=int, action="append", help="length of the target's prompt; repeatable")
    parse.add_argument("--timeout", type=float, default=600.0, help="seconds for one launch")
    return parse


def main(arguments: list[str] | None = None) -> int:
    """Print the map; return 0, or why there is none."""
    options = parser().parse_args(arguments)
    started = time.monotonic()
    try:
        config = json.loads((options.model / "config.json").read_bytes())
        lengths = options.prompt_tokens or [16]
        if options.engine == "vllm":
            document = _vllm(options, lengths)
        else:
            with Children(options.model, python=options.python, timeout=options.timeout) as children:
                document = chart(children.run, config, lengths, options.rows, options.tokens, say)
    except MapError as fault:
        return _fail(str(fault), fault.exit_code)
    except TrialError as fault:
        return _fail(str(fault), fault.exit_code)
    except OSError as fault:
        return _fail(f"{fault.filename or options.model}: {fault.strerror}", BAD_INPUT)
    except ValueError as fault:
        return _fail(f"{options.model}/config.json is no JSON: {fault}", BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted; there is no map", 130)
    document["model"] = options.model.resolve().name
    document["seconds"] = round(time.monotonic() - started, 1)
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    return 0


def _vllm(options: argparse.Namespace, lengths: list[int]) -> dict[str, object]:
    """Return the map that a process with vLLM makes. Raises TrialError when it gives none."""
    words = ["--rows", str(options.rows), "--tokens", str(options.tokens)]
    words += [word for length in lengths for word in ("--prompt-tokens", str(length))]
    with tempfile.TemporaryDirectory() as folder:
        # This package alone: the folder that it is installed in may hold another interpreter's torch.
        (Path(folder) / "replay").symlink_to(Path(__file__).resolve().parent.parent)
        quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
        variables = quiet | child_environment(folder, {})
        try:
            found = subprocess.run([options.python, "-m", PROBE], env=variables, stdout=subprocess.PIPE, check=False)
            if found.returncode or "vllm" not in json.loads(found.stdout)["engines"]:
                raise TrialError(f"{options.python} has no vllm: name one that has it with --python", USAGE)
            command = [options.python, "-m", VLLM, str(options.model), *words]
            done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=False)
        except OSError as fault:
            raise TrialError(f"{options.python} cannot be started (--python): {fault.strerror}", USAGE) from None
    if done.returncode:
        code = done.returncode if done.returncode in (USAGE, BAD_INPUT, UNDECIDED, 130) else UNDECIDED
        raise TrialError(f"vLLM made no map: exit code {done.returncode} (its message is above)", code)
    document: dict[str, object] = json.loads(done.stdout)
    return document


def say(line: str) -> None:
    """Write a line of progress to stderr."""
    print(f"map: {line}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> int:
    say(f"error: {message}")
    return code


if __name__ == "__main__":
    sys.exit(main())
