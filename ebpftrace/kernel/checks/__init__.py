# SPDX-License-Identifier: Apache-2.0
"""Can this machine trace?  One check each, looking at the thing itself."""
