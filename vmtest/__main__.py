# SPDX-License-Identifier: Apache-2.0
"""``python -m vmtest``: see ``make test-kernels``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from vmtest.guest import CannotBoot
from vmtest.kernels import KERNELS, chosen
from vmtest.matrix import Matrix, table

_DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebpftrace-vmtest"


@click.command()
@click.argument("kernels", default="short")
@click.option(
    "--cache", type=click.Path(path_type=Path), default=_DEFAULT_CACHE, help="Where kernels are kept."
)
@click.option("--seconds", type=float, default=1800, show_default=True, help="Limit for one kernel.")
@click.option(
    "--acceleration", type=click.Choice(["tcg", "kvm"]), default="tcg", show_default=True, help="Of QEMU."
)
@click.option("--allow-missing", is_flag=True, help="A kernel that the archive does not have is no failure.")
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Run what failed in a second machine; what passes there is only named.",
)
@click.option("--list", "only_list", is_flag=True, help="Show the kernels there are.")
def main(
    kernels: str,
    cache: Path,
    seconds: float,
    acceleration: str,
    allow_missing: bool,
    retry_failed: bool,
    only_list: bool,
) -> None:
    """Run the tests on KERNELS: short, all, userlands, or names with commas between them."""
    if only_list:
        for kernel in KERNELS:
            group = "short" if kernel.is_short else "userlands" if kernel.userland else ""
            click.echo(f"{kernel.name}\t{kernel.suite}\t{group}".rstrip())
        return
    try:
        wanted = chosen(kernels)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        matrix = Matrix(cache, seconds, acceleration, lambda text: click.echo(text, err=True), retry_failed)
        results = matrix.run(wanted)
    except (CannotBoot, subprocess.CalledProcessError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(table(results))
    for result in results:
        for name in result.failed:
            click.echo(f"{result.kernel.name}: FAILED {name}")
        for name in result.flaky:
            click.echo(f"{result.kernel.name}: FLAKY {name} (it failed, and passed in a second machine)")
    judged = [result for result in results if not (allow_missing and result.is_missing)]
    sys.exit(0 if judged and all(result.passed for result in judged) else 1)


if __name__ == "__main__":
    main()
