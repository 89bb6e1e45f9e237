# SPDX-License-Identifier: Apache-2.0
"""What /proc and the memory of a target tell, read without ever stopping it."""
