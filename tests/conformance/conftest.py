"""Prints passed / failed / skipped for each class of transformers' mixins, after `make conformance`."""

from collections import Counter

OUTCOMES = ("passed", "failed", "skipped")


def pytest_terminal_summary(terminalreporter) -> None:
    counts: dict[str, Counter] = {}
    for outcome in (*OUTCOMES, "error"):
        for report in terminalreporter.stats.get(outcome, []):
            file, *names = report.nodeid.split("::")
            # Subtests report beside the test that they belong to, with a context of their own.
            if file.endswith("test_conformance.py") and len(names) == 2 and not hasattr(report, "context"):
                counts.setdefault(names[0], Counter())["failed" if outcome == "error" else outcome] += 1
    if counts:
        terminalreporter.section("transformers' own mixins")
        terminalreporter.write_line("class".ljust(32) + "".join(outcome.rjust(9) for outcome in OUTCOMES))
    for name, count in sorted(counts.items()):
        terminalreporter.write_line(name.ljust(32) + "".join(str(count[outcome]).rjust(9) for outcome in OUTCOMES))
