"""``python -m ebpftrace``."""

from ebpftrace.cli import main

if __name__ == "__main__":
    main(prog_name="ebpftrace")
