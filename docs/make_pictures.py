"""Draws the README's pictures, so that they cannot go stale: python docs/make_pictures.py.

The bar chart comes from the first table of docs/performance.md, one SVG for a light page and one for a dark page; the
badges come from pyproject.toml. None of them needs a font, a script or anything from elsewhere.
"""

import re
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "performance.md"
PROJECT = DOCS.parent / "pyproject.toml"
TITLE = "LoRA on one H200: samples per second"
NOTE = "Phi-3-mini's shape, r=16 on all modules, 20,000 census rows; the same rows, labels and order for everyone"
WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 760, 232, 62, 62, 22, 10


@dataclass(frozen=True)
class Theme:
    """The colours of one chart, as SVG writes them."""

    text: str
    quiet: str
    ours: str
    others: str


THEMES = {
    "light": Theme(text="#1f2328", quiet="#59636e", ours="#0969da", others="#afb8c1"),
    "dark": Theme(text="#f0f6fc", quiet="#9198a1", ours="#4493f8", others="#59636e"),
}


def bars(page: str) -> list[tuple[str, float]]:
    """Label and samples/s of each line of the page's first table, in its order."""
    table = page[page.index("| system |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [(system, float(samples)) for system, _, samples, _ in cells]


def render(page: str, theme: Theme) -> str:
    """The chart as SVG.

    Args:
        page: Text of docs/performance.md.
        theme: Its colours.
    """
    rows = bars(page)
    longest = max(value for _, value in rows)
    height = TOP + len(rows) * (BAR + GAP) + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'role="img" font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13">\n'
        f"<title>{escape(TITLE)}</title>\n"
        f'<text x="0" y="18" font-size="16" font-weight="600" fill="{theme.text}">{escape(TITLE)}</text>\n'
        f'<text x="0" y="40" font-size="12" fill="{theme.quiet}">{escape(NOTE)}</text>\n'
    ]
    for index, (label, value) in enumerate(rows):
        y = TOP + index * (BAR + GAP)
        middle = y + BAR / 2 + 4.5
        is_ours = re.match(r"strop\b", label) is not None
        length = value / longest * (WIDTH - LEFT - RIGHT)
        weight = "600" if is_ours else "400"
        parts.append(
            f'<text x="{LEFT - 10}" y="{middle:g}" text-anchor="end" fill="{theme.text}">{escape(label)}</text>\n'
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3" '
            f'fill="{theme.ours if is_ours else theme.others}"/>\n'
            f'<text x="{LEFT + length + 8:.1f}" y="{middle:g}" font-weight="{weight}" '
            f'fill="{theme.text}">{value:.0f}</text>\n'
        )
    return "".join([*parts, "</svg>\n"])


def badge(label: str, value: str) -> str:
    """A badge as SVG, grey and blue, in the size that such badges have."""
    left, right = (round(len(text) * 6.6) + 12 for text in (label, value))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        'font-family="Verdana, DejaVu Sans, sans-serif" font-size="11" fill="#fff" text-anchor="middle">\n'
        f"<title>{escape(label)}: {escape(value)}</title>\n"
        f'<clipPath id="round"><rect width="{left + right}" height="20" rx="3"/></clipPath>\n'
        '<g clip-path="url(#round)">\n'
        f'<rect width="{left}" height="20" fill="#555"/>\n'
        f'<rect x="{left}" width="{right}" height="20" fill="#0969da"/>\n</g>\n'
        f'<text x="{left / 2:g}" y="14">{escape(label)}</text>\n'
        f'<text x="{left + right / 2:g}" y="14">{escape(value)}</text>\n</svg>\n'
    )


def pictures() -> dict[Path, str]:
    """File -> content, of every picture."""
    page = PAGE.read_text(encoding="utf-8")
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    versions = [name.split(" :: ")[-1] for name in project["classifiers"] if re.search(r":: 3\.\d+$", name)]
    svgs = {f"throughput-{name}.svg": render(page, theme) for name, theme in THEMES.items()}
    svgs["badge-python.svg"] = badge("python", " | ".join(versions))
    svgs["badge-license.svg"] = badge("license", project["license"])
    return {DOCS / "images" / name: svg for name, svg in svgs.items()}


if __name__ == "__main__":
    for file, svg in pictures().items():
        file.write_text(svg, encoding="utf-8")
