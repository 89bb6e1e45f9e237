# SPDX-License-Identifier: Apache-2.0
"""What an address space grew by, who made it grow, and how regularly; pure, no I/O.

``model`` the words; ``standing`` what stood at two moments, and what changed between them;
``causes`` the changes taken together by call, thread and site; ``regular`` which of them keep coming.
"""
