"""A pytest plugin that runs the suites from small to real, and prints how long each of them took.

A suite is a folder of tests/: unit, contract, node, e2e. The time of a suite is the sum of its tests with
their fixtures, as if it ran alone. Signals that whoever started the run ignores are heard again: a shell
ignores SIGINT in its background and nohup SIGHUP, and what tests start would inherit that.
"""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ORDER = ("unit", "contract", "node", "e2e")
seconds: defaultdict[str, float] = defaultdict(float)
tests: Counter[str] = Counter()


def suite_of(node_id: str) -> str:
    """The suite of a test: `tests/unit/test_x.py::test_y` is in `unit`."""
    parts = Path(node_id.split("::", 1)[0]).parts
    return parts[1] if len(parts) > 2 else "other"


def rank(item: pytest.Item) -> int:
    """The place of a test's suite in the run."""
    suite = suite_of(item.nodeid)
    return ORDER.index(suite) if suite in ORDER else len(ORDER)


def pytest_configure() -> None:
    """Hear the signals that whoever started the run ignores."""
    for number in (signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap suites first, so that a broken value shows before a fleet is started."""
    items.sort(key=rank)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count each phase of each test."""
    suite = suite_of(report.nodeid)
    seconds[suite] += report.duration
    tests[suite] += report.when == "call" or (report.when == "setup" and not report.passed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for each suite, in the order of the run."""
    terminalreporter.section("suites")
    for suite in sorted(tests, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        terminalreporter.write_line(f"{suite:<10}{tests[suite]:>6} tests{seconds[suite]:>9.1f} s")
