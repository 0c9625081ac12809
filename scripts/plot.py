#!/usr/bin/env python3
"""Draws the tables of scripts/bench.sh: each FILE.csv of a directory becomes a FILE.svg there.

usage: scripts/plot.py DIR

A chart has three panels: latency (on a logarithmic scale), requests per second, memory. The rows of
a table stand side by side at equal distances, whatever their values. Needs Python 3.8 or newer and
nothing else.
"""

import csv
import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 250, 200  # of a panel, with its margins
LEFT, RIGHT, TOP, BOTTOM = 46, 42, 40, 34
COLOURS = ["#1f5fa8", "#d1622b"]

TITLES = {
    "connections": "GET /ping, by connections",
    "payload": "POST /agents/demo/echo, by bytes of body, 8 connections",
    "waiters": "An upstream that takes 500 ms, by waiting requests",
    "agents": "GET /ping, by agents, 64 connections",
    "agents_slow": "An upstream that takes 20 ms, by agents with 8 workers each, 64 connections",
}
# Title, columns with what they are called and what to divide them by, whether logarithmic.
PANELS = [
    ("latency, ms", [("p50_us", "p50", 1000), ("p99_us", "p99", 1000)], True),
    ("requests/s", [("requests_per_s", "", 1)], False),
    ("memory, MiB", [("api_1_kib", "api_1", 1024), ("agent_kib", "agent", 1024)], False),
]


def short(number):
    """1048576 -> 1Mi, 20000 -> 20k, 0.5 -> 0.5"""
    for size, unit in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if number >= size and number % size == 0:
            return f"{number // size:g}{unit}"
    return f"{number / 1000:g}k" if number >= 10000 else f"{number:g}"


def steps(top):
    """About four round numbers from 0 to at least `top`."""
    size = 10 ** math.floor(math.log10(top / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * 4 >= top)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def decades(low, high):
    """Powers of ten around `low` to `high`, two at least."""
    first = math.floor(math.log10(low))
    return [10.0**i for i in range(first, max(math.ceil(math.log10(high)), first + 1) + 1)]


def text(x, y, words, anchor="middle", **attributes):
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def panel(left, rows, labels, title, columns, logarithmic):
    values = [[float(row[name]) / unit for row in rows] for name, _, unit in columns]
    least, most = min(map(min, values)), max(map(max, values))
    logarithmic = logarithmic and least > 0
    ticks = decades(least, most) if logarithmic else steps(most or 1)
    scale = math.log10 if logarithmic else float
    bottom, top = scale(ticks[0]), scale(ticks[-1])
    right, floor = left + WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(i):
        return left + LEFT + (right - left - LEFT) * (i + 0.5) / len(rows)

    def y(value):
        return floor - (floor - TOP) * (scale(value) - bottom) / (top - bottom)

    out = [text(left + LEFT, TOP - 9, title, "start", font_weight="bold")]
    for tick in ticks:
        out.append(f'<path d="M{left + LEFT} {y(tick):.1f}H{right}" stroke="#ddd"/>')
        out.append(text(left + LEFT - 5, y(tick) + 3.5, f"{tick:g}", "end"))
    for i, label in enumerate(labels):
        out.append(text(x(i), floor + 14, label))
    ends = []
    for (_, name, _), line, colour in zip(columns, values, COLOURS):
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(line))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        for i, value in enumerate(line):
            out.append(f'<circle cx="{x(i):.1f}" cy="{y(value):.1f}" r="2.3" fill="{colour}"/>')
        ends.append([y(line[-1]) + 3.5, name, colour])
    if len(ends) == 2:  # names that would lie on each other move apart
        high, low = sorted(ends, key=lambda end: end[0])
        apart = max(0, 12 - (low[0] - high[0])) / 2
        high[0] -= apart
        low[0] += apart
    for height, name, colour in ends:
        out.append(text(right - 4, height, name, "start", fill=colour, font_weight="bold"))
    return out


def chart(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"p50_us", "requests_per_s"} <= rows[0].keys():
        return None
    what = next(iter(rows[0]))
    labels = [short(int(row[what])) for row in rows]
    width = WIDTH * len(PANELS) + 10
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="10" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        text(LEFT, 16, TITLES.get(path.stem, path.stem), "start", font_size=12),
    ]
    for i, (title, columns, logarithmic) in enumerate(PANELS):
        out += panel(i * WIDTH, rows, labels, title, columns, logarithmic)
    out.append(text(width / 2, HEIGHT - 5, what))
    return "\n".join(out + ["</svg>", ""])


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if len(sys.argv) == 2 else 2
    drawn = 0
    for path in sorted(Path(sys.argv[1]).glob("*.csv")):
        svg = chart(path)
        if svg:
            path.with_suffix(".svg").write_text(svg, encoding="utf-8")
            print(path.with_suffix(".svg"))
            drawn += 1
    if not drawn:
        print(f"plot.py: no table of scripts/bench.sh in {sys.argv[1]}", file=sys.stderr)
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
