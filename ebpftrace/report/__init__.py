# SPDX-License-Identifier: Apache-2.0
"""Turns a ``model.Report`` into what a user reads; knows nothing of capture.

Text from a target is made fit for a screen here and only here (``text.escape``).
"""
