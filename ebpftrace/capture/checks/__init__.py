# SPDX-License-Identifier: Apache-2.0
"""Checks whether this machine can trace; each one tries what it checks."""
