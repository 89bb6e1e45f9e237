# SPDX-License-Identifier: Apache-2.0
"""A fuzzer over the readers of what a target controls: ``python -m fuzz``, ``make fuzz``.

Inputs are made by Atheris (libFuzzer for Python), which keeps what reaches new code.
``tests/unit/test_fuzz.py`` feeds each reader a few, without it.
"""
