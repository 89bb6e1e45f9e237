# SPDX-License-Identifier: Apache-2.0
# Maps memory from Python functions that call each other, without C code in between.  Speaks as the C targets
# do (target.h).
import mmap
import sys
import threading


def call(further, size):
    return call(further - 1, size) if further else mmap.mmap(-1, size)


print("ready", flush=True)
sys.stdin.readline()
kept = []
thread = threading.Thread(target=lambda: kept.extend([call(9, 3 << 20), call(40, 5 << 20)]))
thread.start()
thread.join()
print("done", flush=True)
sys.stdin.readline()
