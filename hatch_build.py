# SPDX-License-Identifier: Apache-2.0
"""Where this project lives, for the package's metadata: known where it is built for a release.

A checkout does not know its public address, and may be a fork; GitHub Actions does.
"""

from __future__ import annotations

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class CustomMetadataHook(MetadataHookInterface):
    """Fills in ``[project.urls]``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """As hatchling asks for it; without an address there are no URLs rather than wrong ones."""
        server = os.environ.get("GITHUB_SERVER_URL")
        repository = os.environ.get("GITHUB_REPOSITORY")
        if not server or not repository:
            return
        home = f"{server}/{repository}"
        metadata["urls"] = {
            "Source": home,
            "Issues": f"{home}/issues",
            "Documentation": f"{home}/tree/main/docs",
            "Changelog": f"{home}/blob/main/CHANGELOG.md",
        }
