"""Summarise sales: read a CSV file, write a Markdown report. Plain Python, no packages."""

import csv
import sys
from collections import defaultdict
from decimal import Decimal
from pathlib import Path


def main(source: Path, target: Path) -> None:
    revenue: dict[str, Decimal] = defaultdict(Decimal)
    units: dict[str, int] = defaultdict(int)
    days: dict[str, Decimal] = defaultdict(Decimal)
    with source.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            amount = int(row["units"]) * Decimal(row["unit_price"])
            revenue[row["region"]] += amount
            days[row["date"]] += amount
            units[row["product"]] += int(row["units"])
            if number % 120 == 0:
                print(f"read {number} rows", flush=True)
    best = max(days, key=lambda day: days[day])
    lines = [f"# Sales from {min(days)} to {max(days)}", "", "| region | revenue |", "|---|---:|"]
    lines += [f"| {region} | {amount:,.2f} |" for region, amount in sorted(revenue.items())]
    lines += ["", "| product | units |", "|---|---:|"]
    lines += [f"| {product} | {count:,} |" for product, count in sorted(units.items())]
    lines += ["", f"Total revenue {sum(revenue.values()):,.2f}; the best day was {best}."]
    target.write_text("\n".join(lines) + "\n")
    print(f"wrote {target.name}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
