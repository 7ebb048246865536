"""Text for a terminal and for files of tables: suggestions, CSV, Markdown."""

import csv
import difflib
import io
from collections.abc import Collection, Iterable, Mapping, Sequence


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `, did you mean A or B?` with the names closest to a misspelt one; nothing if none is close."""
    others = set(known) - {name}
    longer = sorted(each for each in others if each.startswith(f"{name}_"))  # far from a short name, and still meant
    near = list(dict.fromkeys([*longer, *difflib.get_close_matches(name, others, n=3)]))[:3]
    return f", did you mean {' or '.join(near)}?" if near else ""


def printable(text: str) -> str:
    """Escapes what would break a line or steer a terminal: names of files and classes may contain anything."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def elide(text: str, longest: int) -> str:
    """Returns text of at most so many letters, two or more, with an ellipsis in the middle if it is longer."""
    if len(text) <= longest:
        return text
    end = (longest - 1) // 2
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"


def no_formula(text: str) -> str:
    """Returns text with an apostrophe before it if a spreadsheet would compute it: names may come from a stranger."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def csv_line(cells: Iterable[object], end: str = "\n") -> str:
    """Returns a row of CSV; before 3.13, Python quotes a carriage return in a cell only where rows end with one."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + end


def csv_text(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> str:
    """Returns a table as CSV, with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def markdown_table(rows: Iterable[Mapping[str, str]], columns: Sequence[str], left: Collection[str]) -> str:
    """Returns a table as Markdown; the columns `left` are aligned to the left, all others to the right."""
    rule = ["---" if name in left else "---:" for name in columns]
    cells = [[row[name].replace("|", r"\|") for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in [columns, rule, *cells])
