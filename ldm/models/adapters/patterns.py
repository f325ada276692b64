"""Regular expressions in an adapter's configuration, checked before peft uses them.

peft matches `target_modules`, `rank_pattern` and the like with `re`, which can take exponential time for a short
expression and cannot be interrupted. So a process with a limit on its processor time and memory does the same matching
first. Only expressions that pass are given to peft.
"""

import json
import re
import subprocess
import sys
from collections.abc import Collection, Sequence

from ldm.errors import UserError

FORMS = {
    "target_modules": "{}",
    "exclude_modules": "{}",
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
}
"""How peft 0.21 completes the expressions of each key; the whole name of a layer has to match."""

MAX_PATTERNS = 10_000
"""In one key; no network has as many layers."""

MAX_SECONDS = 5
"""Processor time for all expressions of a key with all layers. Those of real files take milliseconds."""

MAX_MEMORY_BYTES = 2**30
ALWAYS_FAST = 500
"""Plain names up to this many are not tried: `re` keeps 512 compiled expressions, and so compiles each only once."""

MAX_SHOWN = 60
HINT = "name the layers in a list, or use a simpler expression"
_PLAIN = re.compile(r"\^?[\w.-]+")

_TRY_ALL = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({MAX_SECONDS}, {MAX_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({MAX_MEMORY_BYTES}, {MAX_MEMORY_BYTES}))
given = json.load(sys.stdin)
for index, pattern in enumerate(given["patterns"]):
    print(index, flush=True)
    try:
        compiled = re.compile(given["form"].replace("{{}}", pattern))
    except (re.error, RecursionError, OverflowError) as error:
        print(f"is not a regular expression ({{str(error) or type(error).__name__}})")
        sys.exit(1)
    match = compiled.fullmatch if given["form"] == "{{}}" else compiled.match
    for name in given["names"]:
        match(name)
"""
"""Prints the number of each expression before it is tried, and what is wrong with an invalid one."""


def check_patterns(where: str, key: str, patterns: Sequence[str], names: Collection[str]) -> None:
    """Refuse expressions that are not valid, or that take too long to match.

    Args:
        where: the file, for messages.
        key: of peft's configuration, one of `FORMS`.
        patterns: the expressions, or plain names of layers.
        names: of all layers that peft will compare them with.

    Raises:
        UserError: naming the key and the expression.
    """
    if len(patterns) > MAX_PATTERNS:
        raise UserError(f"{where}: {key} has {len(patterns):,} entries", f"at most {MAX_PATTERNS:,} are read")
    if len(patterns) <= ALWAYS_FAST and all(map(_PLAIN.fullmatch, patterns)):
        return
    given = json.dumps({"form": FORMS[key], "patterns": list(patterns), "names": list(names)})
    command = [sys.executable, "-I", "-S", "-c", _TRY_ALL]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = done.stdout.splitlines()
    invalid = lines.pop() if done.returncode == 1 and lines and not lines[-1].isdigit() else None
    pattern = patterns[int(lines[-1])] if lines else ""
    said = invalid or "takes too much time or memory to match"
    raise UserError(f"{where}: {key} {_cut(pattern)!r} {said}", HINT)


def _cut(pattern: str) -> str:
    return pattern if len(pattern) <= MAX_SHOWN else pattern[:MAX_SHOWN] + "..."
