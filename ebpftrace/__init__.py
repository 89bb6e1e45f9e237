# SPDX-License-Identifier: Apache-2.0
"""ebpftrace: finds the mappings whose owning thread exited without unmapping them."""

__version__ = "0.1.0"
