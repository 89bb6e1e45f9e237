# SPDX-License-Identifier: Apache-2.0
"""The trace of single calls: its records as C and Python agree on them, its tracer."""
