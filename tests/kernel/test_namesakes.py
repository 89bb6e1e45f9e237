# SPDX-License-Identifier: Apache-2.0
"""Task numbers that are used again, while the kernel side still holds who had them before."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Target, fact_areas, no_losses, pieces, reported, trace, within
from test_newest import read, watched

from ebpftrace.procfs.tasks import list_tasks

pytestmark = [
    pytest.mark.usefixtures("numbers_are_chosen"),
    pytest.mark.filterwarnings("ignore:not a bytes object:DeprecationWarning:bcc"),
    pytest.mark.skipif(
        not Path("/proc/sys/kernel/ns_last_pid").exists(), reason="this kernel does not let choose a number"
    ),
]


def test_each_thread_keeps_its_stack_and_nobody_is_taken_for_it() -> None:
    target, report = trace("namesakes", options=["--min-age", 0])
    assert no_losses(report), report["losses"]
    stacks = fact_areas(target.facts("thread"))
    (tid,) = {fact["tid"] for fact in target.facts("thread")}
    (process,) = target.facts("process")
    assert process["pid"] == tid
    found = [mapping for mapping in reported(report, "never-joined-thread") if mapping["owner_tid"] == tid]
    assert len(found) == 2
    for mapping in found:
        (stack,) = (stack for stack in stacks if within([stack], pieces(mapping)) == [stack])
        stacks.remove(stack)
    assert len({mapping["owner_exited_at"] for mapping in found}) == 2
    assert report["calls"]["mmap"] < process["calls"]


def test_one_with_the_number_of_an_exited_thread_is_new_when_it_is_registered() -> None:
    with Target("namesakes") as target, watched(target) as (tracer, _):
        target.run()
        before = read(tracer)
        (number,) = {run.thread.tid for run in before.runs if run.exited_at and run.stack_size}
        assert number not in tracer.known_threads()
        (task,) = (task for task in list_tasks(target.pid) if task.id.tid == target.pid)
        namesake = task._replace(id=task.id._replace(tid=number))
        assert [added.id.tid for added in tracer.add_threads(0, [namesake])] == [number]
        assert number in tracer.known_threads()
        assert not tracer.add_threads(0, [namesake]), "it is known by now"
        after = read(tracer)
    assert set(after.runs) == set(before.runs)
    assert {thread.id for thread in after.threads.values() if thread.alive} >= {namesake.id}


def test_only_who_exited_before_it_was_added_can_be_forgotten() -> None:
    with Target("namesakes") as target, watched(target) as (tracer, _):
        target.run()
        before = read(tracer)
        exited = {run.thread for run in before.runs if run.exited_at and run.stack_size}
        assert exited
        (task,) = (task for task in list_tasks(target.pid) if task.id.tid == target.pid)
        for thread in exited:
            tracer.forget_thread(task._replace(id=thread))  # the kernel side saw it exit
        tracer.forget_thread(
            task._replace(id=task.id._replace(started_at=task.id.started_at + 1))
        )  # has its number only
        assert set(read(tracer).runs) == set(before.runs)
        assert target.pid in tracer.known_threads()
        tracer.forget_thread(task)
        assert target.pid not in tracer.known_threads()
