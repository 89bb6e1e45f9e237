# SPDX-License-Identifier: Apache-2.0
"""By what an address space grew, by which threads and calls, and how regularly; pure, no I/O.

``model`` the data model; ``outstanding`` the mappings at two moments and their changes; ``causes`` the
changes grouped by call, thread and site, and their periods; ``resident`` which code filled resident
memory.
"""
