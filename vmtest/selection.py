# SPDX-License-Identifier: Apache-2.0
"""Which of the kernel tests run on every kernel: those whose outcome may depend on the kernel.

Compiling our programs takes some 20 seconds of a guest without KVM, so there are few.
"""

from __future__ import annotations

TESTS = (
    "tests/kernel/test_setup.py::test_doctor_is_content",
    "tests/kernel/test_procfs.py::test_a_32_bit_program_is_refused",
    "tests/kernel/test_every_kernel.py",
    "tests/kernel/test_exactness.py",
    "tests/kernel/test_probes.py",
    "tests/kernel/test_flood.py::test_overflow_is_counted_and_the_report_stays_true",
    "tests/kernel/test_lifecycle.py::test_command_is_traced_from_its_first_instruction",
    "tests/kernel/test_trace.py::test_stacks_name_the_callers",
)
"""As pytest names them."""

EMULATED_TESTS = (
    "tests/kernel/test_setup.py::test_doctor_is_content",
    "tests/kernel/test_every_kernel.py",
    "tests/kernel/test_chains.py",
    "tests/kernel/test_exactness.py",
    "tests/kernel/test_probes.py",
    "tests/kernel/test_sites.py::test_siblings_are_not_swapped[400]",
    "tests/kernel/test_mmap_leaks_orphans.py::test_what_is_left_of_an_orphan[tagged]",
    "tests/kernel/test_trace.py::test_stacks_name_the_callers",
)
"""Those for another machine than this one, which is always emulated: what may depend on the machine."""

ENVIRONMENT = {
    "EBPFTRACE_EXACT_SEEDS": "1",
    "EBPFTRACE_EXACT_MS": "500",
    "EBPFTRACE_FLOOD_MS": "1000",
    "EBPFTRACE_PATIENCE": "600",
}
"""Short runs, and patience with a slow machine."""

TEST_SECONDS = 1200
"""Limit of one test."""
