"""Samples of durations, and what is said of them."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path


@dataclass
class Series:
    """Durations of one thing, in milliseconds."""

    name: str
    floor: str = ""
    """The series it is compared with."""
    aim: str = ""
    """What docs/specification.md promises of its median."""
    samples: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        self.samples.append(seconds * 1000)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Report:
    """All series and single numbers of a run."""

    series: dict[str, Series] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    number_aims: dict[str, str] = field(default_factory=dict)

    def of(self, name: str, *, floor: str = "", aim: str = "") -> Series:
        if name not in self.series:
            self.series[name] = Series(name, floor, aim)
        return self.series[name]

    def number(self, name: str, value: float, *, aim: str = "") -> None:
        self.numbers[name] = value
        self.number_aims[name] = aim

    def rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for series in self.series.values():
            ratio = ""
            if series.floor in self.series and self.series[series.floor].samples:
                base = self.series[series.floor].quantile(0.5)
                ratio = f"{series.quantile(0.5) / base:.2f} x {series.floor}"
            rows.append((
                series.name,
                str(len(series.samples)),
                f"{series.quantile(0.5):.3f}",
                f"{series.quantile(0.99):.3f}",
                ratio,
                series.aim,
            ))  # fmt: skip
        return rows

    def save(self, directory: Path, table: str) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        when = datetime.now(UTC)
        data = {
            "when": when.isoformat(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "milliseconds": {
                name: {
                    "count": len(series.samples),
                    "p50": series.quantile(0.5),
                    "p99": series.quantile(0.99),
                    "floor": series.floor,
                    "aim": series.aim,
                }
                for name, series in self.series.items()
            },
            "numbers": self.numbers,
        }
        path = directory / f"{when:%Y%m%dT%H%M%S}.json"
        path.write_text(json.dumps(data, indent=2) + "\n")
        path.with_suffix(".txt").write_text(table)
        return path
