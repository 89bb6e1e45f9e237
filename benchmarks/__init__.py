# SPDX-License-Identifier: Apache-2.0
"""What tracing costs, measured side by side: ``make bench``, ``make bench-compare``."""
