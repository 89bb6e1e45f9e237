# SPDX-License-Identifier: Apache-2.0
# Maps memory from Python code: two ways that are one to C code, with C code (sorted) in between.  Speaks as
# the C targets do (target.h).
import mmap
import sys
import threading

SIZE = 1 << 20
kept = []


def inner():
    kept.append(mmap.mmap(-1, SIZE))  # inner


def by_sort():
    return sorted([1], key=lambda _: inner())  # lambda, by_sort


def first_way():
    by_sort()  # first_way


def second_way():
    pass
    by_sort()  # second_way


def generate():
    yield inner()  # generate


def work():
    for _ in range(4):
        first_way()  # work 1
        second_way()  # work 2
        second_way()  # work 3
    list(generate())  # work 4


print("ready", flush=True)
sys.stdin.readline()
thread = threading.Thread(target=work)
thread.start()  # start
thread.join()
print("done", flush=True)
sys.stdin.readline()
