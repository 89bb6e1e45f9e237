# SPDX-License-Identifier: Apache-2.0
"""Stacks of findings: each site says for how many of its calls the stack was copied."""

from __future__ import annotations

from diagnosis_scenes import judge, pthread_stack, span, thread_lists

from ebpftrace.model import Frame, Mapping, Stack, StackSource
from ebpftrace.sessions.attribution import Attribution
from ebpftrace.unwind.copies import StackCopy, Unwound
from ebpftrace.unwind.sites import SiteStacks


class Named:
    """Unwinds a copy to one function, named by what its registers hold."""

    version = 1

    def unwind(self, copy: StackCopy) -> Unwound:
        frame = Frame(copy.registers.decode(), module="/opt/app", offset=copy.signature)
        return Unwound(Stack((frame,), True, StackSource.COPIED), (None,))


def copied(signature: int, mapping: Mapping, function: str) -> StackCopy:
    assert mapping.mapper is not None
    assert mapping.made_at is not None
    return StackCopy(signature, mapping.made_at, mapping.mapper.tid, function.encode(), bytes(8), signed=512)


def test_each_place_of_a_finding_says_for_how_many_of_its_calls_it_was_copied() -> None:
    signatures = [11, 11, 11, 12, 12]
    held = [pthread_stack(number, started_at=number + 1, site=site) for number, site in enumerate(signatures)]
    stacks = SiteStacks()
    for number, function in ((0, "often"), (3, "seldom"), (4, "seldom")):
        stacks.add(copied(signatures[number], held[number].mapping, function))
    stacks.work(Named())
    attribution = Attribution(stacks)
    mappings = [one.mapping for one in held]
    attribution.number(mappings)
    held = [one._replace(mapping=mapping) for one, mapping in zip(held, mappings)]
    lists = thread_lists(stack_cache=tuple(map(span, held)), stack_cache_bytes=1 << 40)
    (finding,) = judge(held, lists, stack_of=attribution.stack).findings

    often, seldom = attribution.finding(finding).sites
    assert (often.count, seldom.count) == (3, 2)
    assert [often.stack.frames[0].function, seldom.stack.frames[0].function] == ["often", "seldom"]
    assert (often.stack.source, seldom.stack.source) == (StackSource.SIGNATURE, StackSource.COPIED)
    assert "seen for 1 of 3 calls" in often.stack.note
    assert seldom.stack.note == ""
    assert attribution.finding(finding).stack == often.stack
