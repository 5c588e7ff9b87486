"""The code blocks of README.md, CONTRIBUTING.md and docs/: what they hold, what they need, and the commands in them.

A block without a mark runs as it stands, in a checkout in which `make demo` and `make quick` have run and that has
photos in `my_photos`: tests/test_docs_blocks_run.py runs it. The line above a block that cannot run there says why:

    <!-- needs: data, gpu -->             it is parsed, not run; NEEDS has the words
    <!-- run by: test_retrieval_docs.py -->   that test runs it, with data of its own
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from launching import ROOT

NEEDS = {
    "data": "photos, tables or checkpoints that are not here: MP-16, Im2GPS3k, `make earth`",
    "gpu": "a CUDA device",
    "machines": "several machines",
    "network": "a package index, the Hub, W&B or another server",
    "time": "more than a few minutes of two cores",
}
PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
]
BLOCK = re.compile(r"(?:^<!-- (needs|run by): ([^\n]*?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL_WORDS = {"do", "done", "then", "fi", "else", "export"}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page, and its mark."""

    page: str
    line: int  # of its code
    language: str
    code: str
    needs: tuple[str, ...] = ()
    run_by: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it is run as it stands."""
        return self.language in ("bash", "python") and not (self.needs or self.run_by)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        kind, mark, language, code = match.groups()
        found.append(
            Block(
                page,
                text.count("\n", 0, match.start(4)) + 1,
                language,
                code,
                needs=tuple(mark.split(", ")) if kind == "needs" else (),
                run_by=mark if kind == "run by" else None,
            )
        )
    return found


def commands_of(block: Block) -> Iterator[list[str]]:
    """Every simple command of a shell block as words: variables set, redirections, loops and assignments left out."""
    variables: dict[str, str] = {}
    for line in block.code.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()"):
                yield from _simple_command(command, variables)
                command = []
            else:
                command.append(word)


def _simple_command(words: list[str], variables: dict[str, str]) -> Iterator[list[str]]:
    while words and (words[0] in SHELL_WORDS or re.match(r"\w+=", words[0])):
        name, equals, value = words[0].partition("=")
        if equals:
            variables[name] = value
        words = words[1:]
    if ">" in words:
        words = words[: words.index(">")]
    if words and words[0] != "for":
        yield words
