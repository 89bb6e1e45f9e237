# SPDX-License-Identifier: Apache-2.0
"""Compile a BPF source with bcc.

Only this module imports bcc, which takes as long as a small compilation.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebpftrace.capture.checks.libraries import check_bcc
from ebpftrace.capture.compiled import Compiled, Program, Table, relocated
from ebpftrace.capture.sources import compiler_flags
from ebpftrace.capture.tables import map_info
from ebpftrace.errors import CannotTrace


def compile_source(source: Path, constants: Mapping[str, int]) -> Compiled:
    """Compile one of our sources, in a ``sources.CompilerThread``.  Raises CannotTrace, OSError (EMFILE)."""
    found = check_bcc()
    if not found.ok:
        raise CannotTrace(found.what, found.remedy)
    import bcc

    class OnlyCompiled(bcc.BPF):  # type: ignore[misc]
        """bcc would load and attach the programs as well."""

        def _trace_autoload(self) -> None: ...

    flags = [f"-D{name}={value}" for name, value in constants.items()]
    flags += [f"-I{source.parent}", *compiler_flags()]
    try:
        bpf = OnlyCompiled(src_file=os.fsencode(source).decode(), cflags=flags)
    except Exception as error:  # bcc raises plain Exception for every kind of failure
        if os.strerror(errno.EMFILE) in str(error):  # raise_file_limit() checked for fewer files
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
        raise CannotTrace(
            f"bcc cannot compile our programs ({error})", "ebpftrace doctor says what is missing"
        ) from error
    try:
        return _content(bcc.lib, bpf)
    finally:
        bpf.cleanup()


def _content(lib: Any, bpf: Any) -> Compiled:
    """Take the tables, which bcc has made, and the programs, which contain the tables' descriptors."""
    # bcc's Python side declares neither function (src/cc/bcc_common.h).
    num_tables, table_name = lib["bpf_num_tables"], lib["bpf_table_name"]
    num_tables.restype, num_tables.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    table_name.restype, table_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]
    tables = []
    places = {}
    for index in range(num_tables(bpf.module)):
        name = table_name(bpf.module, index)
        fd = lib.bpf_table_fd(bpf.module, name)
        places[fd] = index
        info = map_info(fd)
        tables.append(
            Table(name.decode(), info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)
        )
    programs = []
    for index in range(lib.bpf_num_functions(bpf.module)):
        name = lib.bpf_function_name(bpf.module, index)
        start, size = (get(bpf.module, name) for get in (lib.bpf_function_start, lib.bpf_function_size))
        programs.append(Program(name.decode(), relocated(ctypes.string_at(start, size), places)))
    return Compiled(tuple(tables), tuple(programs))
