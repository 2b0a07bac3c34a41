"""What came of reading many files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from e2erag.extract.document import Document, ReadError


@dataclass
class Report:
    """Files read, files and pages that were not and why.

    Attributes:
        read: files that became documents.
        failed: the errors of the others, in order.
        unread: by file, the pages that could not be read (`Document.unread`); such a file still counts as read.
        skipped: what folders held beside files that can be read: how many files of each suffix.
        pages: of the files read.
        seconds: from the first file to the last, what was done with the documents in between included.
        cached: of all files, how many came from the cache.
        cache_files, cache_bytes: what the cache holds in all; filled in by `read_report`.
    """

    read: int = 0
    failed: list[ReadError] = field(default_factory=list)
    unread: dict[str, dict[int, str]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    pages: int = 0
    seconds: float = 0.0
    cached: int = 0
    cache_files: int = 0
    cache_bytes: int = 0

    def add(self, found: Document | ReadError) -> None:
        """Count one file."""
        if isinstance(found, ReadError):
            self.failed.append(found)
            return
        self.read += 1
        self.pages += len(found.pages)
        if found.unread:
            self.unread[found.file] = found.unread

    @property
    def exit_code(self) -> int:
        """0: every file was read; 3: some were; 1: none was (2 is a wrong command line)."""
        return 1 if not self.read else 3 if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; the numbers of unread pages are strings, as JSON has them."""
        return {
            "read": self.read,
            "failed": [{"file": error.file, "reason": error.reason} for error in self.failed],
            "unread": {file: {str(page): why for page, why in pages.items()} for file, pages in self.unread.items()},
            "skipped": dict(self.skipped.most_common()),
            "pages": self.pages,
            "seconds": round(self.seconds, 3),
            "cached": self.cached,
            "cache_files": self.cache_files,
            "cache_bytes": self.cache_bytes,
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        """A table: the numbers, then a line for every file and every stretch of pages that is missing."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        rate = self.pages / self.seconds if self.seconds else 0.0
        time = f"{self.seconds:,.1f} s, {rate:,.0f} pages/s"
        yield f"{'read':8} | {_count(self.read, 'file')}, {_count(self.pages, 'page')} in {time}"
        if self.cached or self.cache_files:
            held = f", which holds {_count(self.cache_files, 'file')}, {self.cache_bytes / 1e6:,.1f} MB"
            yield f"{'cached':8} | {self.cached:,} from the cache{held if self.cache_files else ''}"
        yield f"{'failed':8} | {_count(len(self.failed), 'file')}"
        if self.skipped:
            kinds = ", ".join(f"{kind} ({count:,})" for kind, count in self.skipped.most_common(8))
            yield f"{'skipped':8} | {_count(self.skipped.total(), 'file')} of other kinds: {printable(kinds)}"
        pages = sum(map(len, self.unread.values()))
        yield f"{'unread':8} | {_count(pages, 'page')} of {_count(len(self.unread), 'file')} read"
        rows = [("failed", error.file, error.reason) for error in self.failed]
        for file, reasons in self.unread.items():
            rows += [("unread", file, f"{where}: {why}") for where, why in _runs(reasons)]
        if rows:
            yield ""
            yield from _table(rows)


def _table(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    shown = [(kind, printable(file), printable(why)) for kind, file, why in rows]
    wide = min(max(len(file) for _, file, _ in shown), 60)
    for kind, file, why in shown:
        yield f"{kind:8} | {file:{wide}} | {why}"


def _runs(pages: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """Pages that follow each other and lack for the same reason, as one."""
    stretches: list[tuple[int, int, str]] = []
    for page, why in sorted(pages.items()):
        if stretches and stretches[-1][1:] == (page - 1, why):
            stretches[-1] = stretches[-1][0], page, why
        else:
            stretches.append((page, page, why))
    for first, last, why in stretches:
        yield f"page {first}" if first == last else f"pages {first}–{last}", why


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def printable(text: str) -> str:
    """A file's name may hold line ends and bytes of no character, which a terminal should not be sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
