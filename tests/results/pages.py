"""A report as its readers see it: the page of HTML, and what is printed."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

from rich.console import Console

from mtlbench.results.report import Report, print_report

VOID = {"meta", "br", "hr", "img", "link", "input", "col", "base"}


class Page(HTMLParser):
    """Checks that tags close in order; collects tables as rows of text, links, and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.loads += [values[name] or "" for name in ("src", "href", "xlink:href", "data", "srcset") if name in values]
        if values.get("id"):
            assert values["id"] not in self.anchors, f"id {values['id']} stands twice"
            self.anchors.add(values["id"] or "")
        if tag == "a":
            self.links.add((values["href"] or "").removeprefix("#"))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data.strip()

    def table(self, *titles: str) -> dict[str, dict[str, str]]:
        """The first table that has these column titles: first cell -> title -> cell."""
        for head, *body in self.tables:
            if set(titles) <= set(head):
                assert all(len(row) == len(head) for row in body)
                return {row[0]: dict(zip(head, row, strict=True)) for row in body}
        raise AssertionError(f"no table with {titles}")


def read_page(made: Report) -> tuple[Page, str]:
    text = made.html.read_text(encoding="utf-8")
    page = Page(text)
    # Nothing from outside: what is linked is in the page itself, there is no script and no style sheet to fetch.
    assert all(link.startswith(("#", "data:")) for link in page.loads), page.loads
    assert not re.search(r"<script|<link|<iframe|@import|url\(\s*['\"]?(?!#)", text)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert page.links <= page.anchors
    return page, text


def printed(made: Report, width: int = 80) -> str:
    stream = io.StringIO()
    print_report(made, Console(file=stream, width=width))
    return stream.getvalue()
