# SPDX-License-Identifier: Apache-2.0
"""Where results are kept and shown: a JSON file, the page and its chart, the README's table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks import chart, tables
from benchmarks.loads import KINDS
from benchmarks.results import Results, from_json, to_json
from benchmarks.tools import OURS, ROOT

_SHOWN_KINDS = [(kind.name, kind.what) for kind in KINDS]


@dataclass(frozen=True)
class Record:
    """The files of one record."""

    results: Path
    page: Path
    chart: Path
    readme: Path

    @classmethod
    def of_the_project(cls) -> Record:
        """What is committed."""
        docs = ROOT / "docs"
        return cls(
            ROOT / "benchmarks" / "recorded.json",
            docs / "performance.md",
            docs / "performance.svg",
            ROOT / "README.md",
        )

    @classmethod
    def of_a_trial(cls, directory: Path) -> Record:
        """The same in a directory of its own, beside what is committed."""
        directory.mkdir(parents=True, exist_ok=True)
        project, trial = (
            cls.of_the_project(),
            cls(
                directory / "recorded.json",
                directory / "performance.md",
                directory / "performance.svg",
                directory / "README.md",
            ),
        )
        for theirs, own in ((project.page, trial.page), (project.readme, trial.readme)):
            if not own.exists():
                own.write_text(theirs.read_text())
        return trial

    def read(self) -> Results:
        """What was written last.  Raises OSError, ValueError."""
        return from_json(self.results.read_text())

    def write(self, results: Results) -> None:
        """Write all files.  Raises OSError."""
        self.results.write_text(to_json(results))
        self._put(self.page, tables.page(results, _SHOWN_KINDS))
        self._put(self.readme, tables.overview(results, _SHOWN_KINDS))
        self.chart.write_text(chart.render(results, _SHOWN_KINDS, OURS))

    def _put(self, document: Path, text: str) -> None:
        path = os.path.relpath(self.chart, document.parent)
        image = f"![{chart.TITLE}]({path})\n"
        document.write_text(tables.replaced(document.read_text(), f"{text}\n{image}"))
