"""The README and the pages below docs, taken apart: commands, keys, links, Python examples."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
# what a reader puts in, and what stands for it in a test
PLACEHOLDERS = {"RECIPE": "quickstart", "NETWORK": "cifar_resnet20", "NAME": "cifar_resnet20", "PART": "data"}
PROGRAMS = ("cifar-resnets", "scripts/benchmark.py")


def examples(page: str) -> list[str]:
    """Python examples of a page."""
    return re.findall(r"^```python\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def section(page: str, title: str) -> str:
    """What is below a heading of a page, up to the next one of its level."""
    return PAGES[page].partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def without_examples(page: str) -> str:
    """The text of a page without its Python examples."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)


def code_lines(page: str) -> list[str]:
    """Lines of indented blocks, those that are continued joined."""
    return re.findall(r"^    (\S.*)$", without_examples(page).replace("\\\n", " "), re.MULTILINE)


def code_spans(page: str) -> list[str]:
    """Code within paragraphs and tables."""
    text = re.sub(r"^    .*$", "", without_examples(page), flags=re.MULTILINE)
    return [" ".join(code.split()) for _, code in re.findall(r"(`+)(.+?)\1", text, re.DOTALL)]


def commands(page: str) -> list[list[str]]:
    """All calls of `PROGRAMS` in a page, as words, without pipes, redirections and comments."""
    spans = [f"cifar-resnets {span}" if span.startswith("fit -c") else span for span in code_spans(page)]
    calls = [span for span in spans if span.startswith(PROGRAMS) and " " in span]
    return [found for line in (*code_lines(page), *calls) for found in _calls(line)]


def _calls(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        parts = [*parts, []] if word in ("|", ">") else [*parts[:-1], [*parts[-1], word]]
    for words in parts:
        if len(words) > 1 and words[0] in PROGRAMS:
            yield [PLACEHOLDERS.get(each, each) for each in words]


def anchors(text: str) -> set[str]:
    """The addresses of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", without_examples(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
