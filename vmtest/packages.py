# SPDX-License-Identifier: Apache-2.0
"""Kernels out of the archive that this machine's own apt uses: other suites of it, nothing installed.

apt-get(8), apt-cache(8), sources.list(5); ``apt-get indextargets`` names that archive.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

from vmtest.kernels import Kernel

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SECURITY = "-security"


class Unavailable(Exception):
    """A kernel or a userland cannot be had; the text says why."""


def fetch(kernel: Kernel, cache: Path) -> Path:
    """Return the directory with the newest version of a kernel, unpacked; download it unless it is there.

    Raises Unavailable.
    """
    apt = _Apt(kernel.suite, kernel.architecture, cache / "apt" / f"{kernel.suite}-{kernel.architecture}")
    image = apt.newest_image(kernel.series, kernel.package_suffix)
    unpacked = cache / "kernels" / image.removeprefix("linux-image-")
    if unpacked.is_dir():
        return unpacked
    unfinished = unpacked.with_name(unpacked.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for package in apt.download([image, *apt.parts(image)], unfinished):
        _run(["dpkg-deb", "--extract", str(package), str(unfinished)])
        package.unlink()
    unfinished.rename(unpacked)
    return unpacked


class _Apt:
    """apt with one suite as its only source, and its state in a directory of ours."""

    def __init__(self, suite: str, architecture: str, directory: Path) -> None:
        self._suite = suite
        lists = directory / "lists"
        sources = directory / "sources.list"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        uri = archive("security" if suite.endswith(_SECURITY) else "main")
        sources.write_text(f"deb [arch={architecture} signed-by={_KEYRING}] {uri} {suite} main\n")
        self._options = [
            option
            for setting in (
                f"Dir::Etc::SourceList={sources}",
                "Dir::Etc::SourceParts=/dev/null",
                f"Dir::State::Lists={lists}",
                f"Dir::Cache={directory}",
                f"APT::Architecture={architecture}",
                f"APT::Architectures={architecture}",
                "Acquire::Languages=none",
                "APT::Sandbox::User=root",
            )
            for option in ("-o", setting)
        ]
        _run(["apt-get", *self._options, "update", "-qq", "--error-on=any"])

    def newest_image(self, series: str, suffix: str) -> str:
        """Return the package with the newest kernel of a series; its name ends with ``suffix``."""
        names = _run(["apt-cache", *self._options, "pkgnames", "linux-image-"]).split()
        release = rf"{re.escape(series)}\.\d+.*" if series else r"\d+\.\d+\.\d+.*"
        pattern = re.compile(rf"linux-image-{release}-{re.escape(suffix)}")
        matching = filter(pattern.fullmatch, names)
        found = [(version, name) for name in matching if (version := self._version(name))]
        if not found:
            raise Unavailable(f"{self._suite} has no {suffix} kernel {series}".rstrip())
        return max(found, key=lambda each: functools.cmp_to_key(_compare)(each[0]))[1]

    def parts(self, image: str) -> list[str]:
        """Return the packages that a package of a kernel split in parts needs of the same kernel.

        Raises Unavailable where the archive no longer has them: it drops those of older kernels first.
        """
        release = image.removeprefix("linux-image-")
        wanted = (f"linux-binary-{release}", f"linux-modules-{release}")
        depends = self._cache("depends", image)
        for name in wanted:
            if f"<{name}>" in depends:  # apt-cache(8) prints a package without a provider like this
                raise Unavailable(f"{self._suite} has {image}, but not {name}")
        return [name for name in wanted if re.search(rf"Depends: {re.escape(name)}$", depends, re.MULTILINE)]

    def download(self, names: list[str], directory: Path) -> list[Path]:
        """Download packages of the suite into the directory."""
        wanted = [f"{name}={self._version(name)}" for name in names]
        _run(["apt-get", *self._options, "download", "-qq", *wanted], directory)
        return sorted(directory.glob("*.deb"))

    def _version(self, name: str) -> str:
        """Return the newest version of a package in the suite, empty where only dpkg knows it."""
        lines = self._cache("madison", name).splitlines()
        versions = [line.split("|")[1].strip() for line in lines]
        return max(versions, key=functools.cmp_to_key(_compare), default="")

    def _cache(self, *arguments: str) -> str:
        return _run(["apt-cache", *self._options, *arguments])


def archive(which: str) -> str:
    """Return the address of Debian's main or security archive, as this machine's apt has it."""
    if not _KEYRING.exists():
        raise Unavailable(f"{_KEYRING} is missing: run this on Debian, or in the machine of vagrant/")
    listed = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"])
    for line in listed.splitlines():
        uri, release, component = line.split()
        is_security = release.endswith(_SECURITY)
        if component == "main" and (is_security if which == "security" else release.isalpha()):
            return uri
    raise Unavailable(f"this machine's apt has no {which} archive of Debian: see apt-get indextargets")


def acquire_settings() -> list[str]:
    """Return how this machine's apt reaches its archives (proxies, dates that it believes): apt.conf(5)."""
    lines = _run(["apt-config", "dump"]).splitlines()
    return [line for line in lines if re.match(r'Acquire::(?:Check-|https?::)\S* "[^"]+";', line)]


def _compare(one: str, other: str) -> int:
    """Compare versions as dpkg does."""
    if one == other:
        return 0
    is_less = subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=False).returncode == 0
    return -1 if is_less else 1


def _run(command: list[str], directory: Path = Path("/")) -> str:
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise Unavailable(f"{' '.join(command[:1] + command[-2:])}: {ended.stderr.strip()}")
    return ended.stdout
