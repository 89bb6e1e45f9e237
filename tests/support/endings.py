# SPDX-License-Identifier: Apache-2.0
"""What ``finale`` of tests/targets can do before it ends, how it ends, and what is true then."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Optional

CHOSEN = 7
"""The exit status of ``finale``, where it chooses one."""


@dataclass(frozen=True)
class Leak:
    """Threads that nobody joined."""

    count: int
    creator: str
    """The function that created them: the innermost one of the program itself."""
    verdict: str = "never-joined-thread"


LEAKING = {
    "leak1": Leak(1, "spawn_job"),
    "leak5": Leak(5, "spawn_job"),
    "exits": Leak(1, "spawn_job"),
    "cancelled": Leak(1, "made"),
    "gives_up": Leak(1, "made"),
    "c11": Leak(1, "body"),
    "mixed": Leak(2, "spawn_job"),
    "own_stack": Leak(1, "made_on_own_stack", "abandoned-stack"),
    "forks": Leak(3, "spawn_job"),
    "forks_after": Leak(1, "spawn_job"),
}
HEALTHY = (
    "joined",
    "exits_joined",
    "cancelled_joined",
    "gives_up_joined",
    "own_stack_joined",
    "forks_joined",
    "at_end",
    "runs",
    "detached",
    "detached_meanwhile",
    "detached_after",
    "self_detached",
    "attr_detached",
    "tryjoin",
    "timedjoin",
    "c11_joined",
    "churn",
    "waits",
)
FORKING = ("forks", "forks_joined", "forks_after")
"""Those that fork a child, which creates threads ..."""
CHILD_ONLY = ("forks", "forks_joined")
"""... and which create none themselves."""

STATUSES = {
    "return": CHOSEN,
    "exit": CHOSEN,
    "_exit": CHOSEN,
    "term": 128 + signal.SIGTERM,
    "kill": 128 + signal.SIGKILL,
    "abort": 128 + signal.SIGABRT,
    "segv": 128 + signal.SIGSEGV,
    "last": CHOSEN,
    "exec": 0,
}
"""The ways to end, and the exit status as a shell tells it."""


@dataclass(frozen=True)
class Ending:
    """One run of ``finale``."""

    body: str
    tail_ms: int
    end: str

    @property
    def arguments(self) -> tuple[str, str, str]:
        """Its command line."""
        return self.body, str(self.tail_ms), self.end

    @property
    def leak(self) -> Optional[Leak]:
        """What it leaves unjoined."""
        return LEAKING.get(self.body)

    @property
    def forks(self) -> bool:
        """It has a child that creates threads."""
        return self.body in FORKING

    @property
    def judged(self) -> int:
        """Processes of this run that create threads."""
        return self.forks + (self.body not in CHILD_ONLY or self.end == "last")

    @property
    def followed(self) -> int:
        """Processes of this run that are forked or executed."""
        return (1 + self.forks) * (2 if self.end == "exec" else 1)

    @property
    def status(self) -> int:
        """Its exit status as a shell tells it."""
        return STATUSES[self.end]


def endings(tails_ms: Sequence[int]) -> list[Ending]:
    """Every body with every end, each with one of the tails in turn."""
    ends = len(STATUSES)
    return [
        Ending(body, tails_ms[(number + number // ends) % len(tails_ms)], end)
        for number, (body, end) in enumerate(product((*LEAKING, *HEALTHY), STATUSES))
        if (body, end) != ("waits", "last")  # a thread ends it while main waits
    ]
