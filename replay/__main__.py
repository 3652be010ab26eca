"""`python -m replay case.json -o verdict.json`: execute a case again and file what the trials show.

The parent needs the standard library only; torch and the model live in child processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from replay.case import Case, CaseError
from replay.casefile import load_case
from replay.catalogue import PinError, check_pin, check_plans
from replay.children import Children
from replay.coverage import variables
from replay.doctor import RANDOM_MODEL, documents, findings
from replay.host import tokenizer_sha256, weights_sha256
from replay.journal import Journal
from replay.prove import REPEATS, prove
from replay.trial import BAD_INPUT, USAGE, TrialError, unsupported


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parse = argparse.ArgumentParser(
        prog="python -m replay", description="Execute a case again and prove what flipped the token."
    )
    parse.add_argument("case", type=Path, nargs="?", help="case file, made with `forensics case`")
    parse.add_argument("-o", "--output", type=Path, metavar="VERDICT", help="where the verdict goes")
    parse.add_argument(
        "--doctor", action="store_true", help="try every factor on this machine instead; one JSON array on stdout"
    )
    parse.add_argument(
        "--pin-algo", action="append", default=[], metavar="PIN", help="FACTOR=VALUE, incident or reference"
    )
    parse.add_argument(
        "--model", type=Path, metavar="DIR", help="model directory; default: where the incident loaded it from"
    )
    parse.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds for one trial, not for the whole run"
    )
    parse.add_argument(
        "--repeats", type=int, default=REPEATS, metavar="N", help="times that the incident runs again, to see a race"
    )
    parse.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trials at once, each in a process with the model of its own"
    )
    parse.add_argument(
        "--arms-only", action="store_true", help="only whether the two arms differ, not what explains it"
    )
    parse.add_argument(
        "--localise", action="store_true", help="also which operator: watch and patch every one in the pass that counts"
    )
    parse.add_argument("--arbiter", action="store_true", help="also which of the two tokens float64 says, and how far")
    parse.add_argument(
        "--journal", type=Path, metavar="FILE", help="where trials are kept until the verdict is; default: beside it"
    )
    parse.add_argument("--python", default=sys.executable, help="interpreter that has torch and the engine")
    return parse


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 no divergence, 1 a divergence, 2 usage, 3 bad input, 4 not decided."""
    given = sys.argv[1:] if arguments is None else arguments
    parse = parser()
    options = parse.parse_args(given)
    if options.doctor:
        return _doctor(options)
    if options.case is None or options.output is None:
        parse.error("a case file and -o VERDICT are needed, or --doctor")
    if options.arms_only and (options.localise or options.arbiter):
        parse.error("--localise and --arbiter ask for more than --arms-only; leave it out")
    if options.jobs < 1:
        parse.error("--jobs takes a number from 1")
    try:
        for pin in options.pin_algo:
            check_pin(pin)
    except PinError as fault:
        return _fail(str(fault), USAGE)
    try:
        case = load_case(options.case)
        model = None
        if not unsupported(case):
            check_plans(case)
            model = _model(case, options.model)
        weights = _weights(model)
        journal = Journal(options.journal or options.output.with_name(f"{options.output.name}.trials"), weights)
        children = Children(
            model or "",
            python=options.python,
            timeout=options.timeout,
            journal=journal,
            engine="vllm" if case.engine.get("engine") == "vllm" else "transformers",
            variables=variables(case) if case.engine.get("engine") == "vllm" else {},
            jobs=options.jobs,
        )
        with children:
            verdict = prove(
                case,
                options.pin_algo,
                children.run,
                weights_sha256=weights,
                tokenizer_sha256=tokenizer_sha256(model) if model else None,
                config=_config(model),
                repeats=options.repeats,
                arms_only=options.arms_only,
                localise=options.localise,
                arbiter=options.arbiter,
                jobs=options.jobs,
                command=shlex.join(["python", "-m", "replay", *given]),
                say=_say,
            )
        if journal.reused:
            _say(f"{journal.reused} trials were taken over from {journal.path}")
        options.output.write_text(verdict.to_json(), encoding="utf-8")
        journal.remove()
    except CaseError as fault:
        return _fail(str(fault), BAD_INPUT)
    except TrialError as fault:
        for line in fault.stderr.splitlines() if os.environ.get("FORENSICS_DEBUG") else ():
            _say(f"stderr: {line}")
        return _fail(str(fault), fault.exit_code)
    except OSError as fault:
        return _fail(f"{fault.filename or options.output}: cannot be written: {fault.strerror}", BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted; no verdict was written; run it again to go on from the trials that are kept", 130)
    _say(f"{verdict.outcome}: {verdict.claim}")
    return verdict.exit_code()


def _doctor(options: argparse.Namespace) -> int:
    """Try every factor; print the findings. Return 0, or why nothing could be tried."""
    children = Children(options.model or RANDOM_MODEL, python=options.python, timeout=options.timeout)
    try:
        with children:
            found = findings(children.run, _say)
    except TrialError as fault:
        return _fail(str(fault), fault.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    sys.stdout.write(json.dumps(documents(found), indent=1, ensure_ascii=False) + "\n")
    return 0


def _model(case: Case, asked: Path | None) -> Path:
    """Return the model directory. Raises CaseError when there is none."""
    path = asked or Path(str(case.engine.get("model_id") or ""))
    if not (path / "config.json").is_file():
        named = f"{path} holds no config.json" if str(path) != "." else "the case does not name its model"
        raise CaseError(f"{named}; give the directory of the model with --model DIR")
    return path


def _config(model: Path | None) -> dict[str, Any]:
    """Return the model's config.json; what is no JSON object is left to the engine, which says so."""
    if model is None:
        return {}
    try:
        config = json.loads((model / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _weights(model: Path | None) -> str | None:
    try:
        return weights_sha256(model) if model else None
    except OSError:
        return None


def _say(line: str) -> None:
    """Write a line; what a case or a child put into it must not steer the terminal."""
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)
    sys.stderr.write(f"replay: {shown}\n")
    sys.stderr.flush()


def _fail(message: str, code: int) -> int:
    _say(f"error: {message}")
    return code


if __name__ == "__main__":
    sys.exit(main())
