# SPDX-License-Identifier: Apache-2.0
"""Which leaks are known and accepted: suppressions and baselines, and two runs compared.  Pure."""
