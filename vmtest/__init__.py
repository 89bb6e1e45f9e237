# SPDX-License-Identifier: Apache-2.0
"""Runs a part of the kernel tests on distribution kernels, in virtual machines: ``make test-kernels``."""
