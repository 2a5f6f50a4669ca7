"""Options of the kernel benchmarks, and their table in GB/s at the end of a run."""

from __future__ import annotations

from typing import Any

import pytest

ROWS = pytest.StashKey[list[tuple[str, str, float]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernel-mib", type=float, default=64.0, help="MiB of the largest array of a kernel benchmark (default 64)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Any:
    """``record(group, contender, bytes_per_second)``: a cell of the table."""

    def add(group: str, contender: str, rate: float) -> None:
        request.config.stash[ROWS].append((group, contender, rate))

    return add


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    groups = list(dict.fromkeys(group for group, _, _ in rows))
    contenders = list(dict.fromkeys(contender for _, contender, _ in rows))
    rates = {(group, contender): rate for group, contender, rate in rows}
    terminalreporter.section("GB/s, bytes read + bytes written (medians)")
    terminalreporter.write_line("| kernel | " + " | ".join(contenders) + " |")
    terminalreporter.write_line("| --- |" + " ---: |" * len(contenders))
    for group in groups:
        cells = (rates.get((group, contender)) for contender in contenders)
        terminalreporter.write_line(
            f"| {group} | " + " | ".join("" if rate is None else f"{rate / 1e9:.2f}" for rate in cells) + " |"
        )
