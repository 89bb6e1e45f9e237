# SPDX-License-Identifier: Apache-2.0
"""The recipes for containers say what the rest of the project says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]

from ebpftrace.capture.checks import machine
from ebpftrace.cli import main

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DOCUMENTED = frozenset(
    re.findall(
        r"CAP_(\w+)",
        " ".join(re.findall(r"^\| (?:and )?CAP_[^|]*\|", (ROOT / "docs/security.md").read_text(), re.M)),
    )
)
"""The capabilities of the table of docs/security.md."""


@pytest.fixture(scope="module")
def pod() -> Any:
    return yaml.safe_load((ROOT / "docs/examples/trace-pod.yaml").read_text())


@pytest.fixture(scope="module")
def container(pod: Any) -> Any:
    (only,) = pod["spec"]["containers"]
    return only


def test_what_tracing_needs_is_documented() -> None:
    needed = {name.removeprefix("CAP_") for name in machine._NEEDED_CAPABILITIES.values()}
    assert needed == DOCUMENTED - {"CHECKPOINT_RESTORE"}


def test_the_pod_has_the_documented_rights_and_no_others(pod: Any, container: Any) -> None:
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    assert pod["spec"]["hostPID"] is True
    assert not {"hostNetwork", "hostIPC", "serviceAccountName"} & set(pod["spec"])
    context = container["securityContext"]
    assert sorted(context["capabilities"]["add"]) == sorted(DOCUMENTED)
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["runAsUser"] == 0
    assert "privileged" not in context
    assert context["readOnlyRootFilesystem"] is True
    assert container["resources"]["limits"]["memory"] == "256Mi"


def test_the_pod_mounts_tracefs_read_only_and_nothing_else_of_the_host(pod: Any, container: Any) -> None:
    paths = {
        volume["name"]: volume["hostPath"]["path"]
        for volume in pod["spec"]["volumes"]
        if "hostPath" in volume
    }
    assert list(paths.values()) == ["/sys/kernel/tracing"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["spec"]["volumes"]}
    (name,) = paths
    assert mounts[name]["mountPath"] == paths[name]
    assert mounts[name]["readOnly"] is True


def test_the_command_of_the_pod_exists(container: Any) -> None:
    assert container["command"] == ["ebpftrace"]
    command, *options = container["args"]
    found = main.get_command(click.Context(main), command)
    assert found is not None
    known = {option for one in found.params for option in one.opts}
    assert {option for option in options if option.startswith("-")} <= known


@pytest.mark.parametrize("page", ["README.md", "docs/containers.md"])
def test_docker_is_given_the_same(page: str) -> None:
    for block in re.findall(r"docker run(?:.|\\\n)*", (ROOT / page).read_text()):
        added = set(re.findall(r"--cap-add[= ](\w+)", block))
        assert not added or added in (set(DOCUMENTED), {"SYS_PTRACE"}), block


def test_the_image_is_built_from_what_there_is() -> None:
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
        # What .dockerignore leaves out can't be copied.
        assert {f"!{source}" for source in sources} <= set((ROOT / ".dockerignore").read_text().split())
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${BASE}"}


def test_the_image_has_the_drgn_that_is_tested() -> None:
    (wanted,) = re.findall(r'"drgn([^";]*);', (ROOT / "pyproject.toml").read_text())
    assert f'"drgn{wanted}"' in DOCKERFILE
