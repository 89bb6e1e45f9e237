# SPDX-License-Identifier: Apache-2.0
"""How many samples a file of ``perf record`` has.

Format: tools/perf/Documentation/perf.data-file-format.txt of the kernel.
"""

from __future__ import annotations

import struct
from pathlib import Path

_DATA_SECTION = struct.Struct("<40xQQ")
_RECORD = struct.Struct("<IHH")
_SAMPLE = 9


def count_samples(path: Path) -> int:
    """Hop from record to record; a file that was not finished has what was written."""
    samples = 0
    with path.open("rb") as file:
        head = file.read(_DATA_SECTION.size)
        if len(head) < _DATA_SECTION.size:
            return 0
        position, size = _DATA_SECTION.unpack(head)
        end = position + (size or path.stat().st_size)
        while position + _RECORD.size <= end:
            file.seek(position)
            record = file.read(_RECORD.size)
            if len(record) < _RECORD.size:
                break
            kind, _, length = _RECORD.unpack(record)
            samples += kind == _SAMPLE
            position += max(length, _RECORD.size)
    return samples
