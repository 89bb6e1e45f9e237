# SPDX-License-Identifier: Apache-2.0
"""All readers that take bytes of a target, of a file that it may write, or of the kernel about it."""

from __future__ import annotations

from fuzz import elf, memory, proc, records, stacks, texts
from fuzz.reader import Reader

READERS: dict[str, Reader] = {
    reader.name: reader for group in (elf, proc, memory, stacks, records, texts) for reader in group.READERS
}
