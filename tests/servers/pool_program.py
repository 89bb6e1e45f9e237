# SPDX-License-Identifier: Apache-2.0
"""A healthy program: pools of threads come and go, and their tasks map memory and give it back."""

import mmap
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor


def task(number: int) -> int:
    with mmap.mmap(-1, 1 << 20) as memory:
        memory[:10] = b"0123456789"
        return zlib.crc32(bytes(200_000 + number) + memory[:10])


def main() -> None:
    print("ready", flush=True)
    while not sys.stdin.closed:
        with ThreadPoolExecutor(8) as pool:
            sum(pool.map(task, range(32)))


main()
