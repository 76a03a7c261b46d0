"""Read a report's tables, as Python's own HTML parser sees them."""

from __future__ import annotations

from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple


class Cell(NamedTuple):
    """`value` is that of a <data> element in the cell, None without one."""

    text: str
    value: float | None
    shade: str


class Report(HTMLParser):
    """`tables` has rows of cells by the table's id, or by that of the heading above it; `data` has values by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[Cell]]] = defaultdict(list)
        self.data: dict[str, float] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = path.read_text(encoding="utf-8")
        self._table = self._heading = ""
        self._cell: Cell | None = None
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        self.elements.append((tag, said))
        if tag == "h3":
            self._heading = said.get("id") or ""
        elif tag == "table":
            self._table = said.get("id") or self._heading
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self._cell = Cell("", None, said.get("class") or "")
        elif tag == "data":
            value = float(said["value"] or "nan")
            if self._cell is not None:
                self._cell = self._cell._replace(value=value)
            if said.get("id"):
                self.data[str(said["id"])] = value

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell = self._cell._replace(text=self._cell.text + data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[self._table][-1].append(self._cell)
            self._cell = None

    def column(self, table: str, title: str) -> dict[str, Cell]:
        """Return the cells of a column by the first cell of their rows."""
        head, *rows = self.tables[table]
        place = [cell.text for cell in head].index(title)
        return {row[0].text: row[place] for row in rows if place < len(row)}

    def values(self, table: str, title: str) -> dict[str, float]:
        return {name: cell.value for name, cell in self.column(table, title).items() if cell.value is not None}
