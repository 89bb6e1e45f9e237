"""What tracing costs, measured side by side: ``make bench``, ``make bench-compare``."""
