# SPDX-License-Identifier: Apache-2.0
"""The search of one reader, in a process of its own: ``python -m fuzz.search READER SECONDS FOLDER``.

Prints its ``Tally`` as JSON.  Ends by itself; libFuzzer only ends it where C code hangs or crashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from fuzz.reader import MAX_BYTES, examine, limit_memory

_HANGS_SECONDS = 60


@dataclass
class Tally:
    """What a search came to."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    violations: int = 0
    """Distinct ones: each place in the code counts once."""


def main(name: str, seconds: float, folder: Path) -> None:
    """Search for so long; inputs that reach new code are kept in the folder's ``corpus``."""
    import atheris  # needed only for fuzzing

    with atheris.instrument_imports(include=["ebpftrace"]):
        from fuzz.readers import READERS
    reader = READERS[name]
    corpus, violations = folder / "corpus" / name, folder / "violations"
    for directory in (corpus, violations):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(reader.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    tally, known, begin = Tally(), set(), time.monotonic()

    def one(data: bytes) -> None:
        tally.inputs += 1
        try:
            tally.accepted += examine(reader, data)
        except BaseException as violation:
            place = _place(violation)
            if place not in known:
                known.add(place)
                tally.violations += 1
                digest = hashlib.sha256(data).hexdigest()[:12]
                saved = violations / f"{name}-{digest}"
                saved.write_bytes(data)
                print(f"{place}\n  python -m fuzz replay {name} {saved}", file=sys.stderr)
        tally.seconds = time.monotonic() - begin
        if tally.seconds >= seconds:
            print(json.dumps(asdict(tally)), flush=True)
            os._exit(0)

    limit_memory()
    options = {
        "max_len": MAX_BYTES, "timeout": _HANGS_SECONDS, "rss_limit_mb": 0, "verbosity": 0,
        "artifact_prefix": f"{violations}/{name}-",
    }  # fmt: skip
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)], one)
    atheris.Fuzz()


def _place(violation: BaseException) -> str:
    if isinstance(violation, (KeyboardInterrupt, SystemExit)):
        raise violation
    last = traceback.extract_tb(violation.__traceback__)[-1]
    kind = type(violation).__name__
    # Where time or memory ran out differs from one input to the next.
    if not isinstance(violation, Exception) or isinstance(violation, MemoryError):
        return kind
    return f"{kind} at {last.filename}:{last.lineno}"


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
