"""JSON and YAML from anywhere: what is no plain document of a sensible depth and size is refused in one way.

Python's parsers end in a dozen types of errors, `RecursionError` among them, and YAML's aliases let a few lines stand
for a billion.
"""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

__all__ = ["MAX_DOCUMENT_BYTES", "DocumentError", "DuplicateKeyError", "parse_json", "parse_yaml", "read_text"]

MAX_DOCUMENT_BYTES = 2**28  # records of long runs have a hundredth of that
MAX_YAML_LETTERS = 2**22  # yaml takes 40 bytes and more for each
MAX_YAML_NODES = 100_000  # aliases written out


class DocumentError(ValueError):
    """A text is no document of its format; a reader says which file it is, and what to do."""


class DuplicateKeyError(DocumentError):
    """A key stands twice in a mapping, where YAML would keep the last one silently."""


def read_text(path: str | Path) -> str:
    """A file in UTF-8.

    Raises:
        OSError: it cannot be read.
        DocumentError: it has more than `MAX_DOCUMENT_BYTES`.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DocumentError(f"it has more than {MAX_DOCUMENT_BYTES:,} bytes")
    return content.decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """`json.loads`; what is nested too deeply is refused like everything else that is no JSON.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DocumentError("it is nested too deeply") from error


class _StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses a key given twice, and a key that is a list or a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise DocumentError(f"a key on line {line} is a {type(key).__name__}; keys are words")
            if key in seen:
                raise DuplicateKeyError(f"key {key} stands twice, the second time on line {line}; keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """One YAML document of plain values: no tag of Python's, no key twice, no aliases that grow beyond all measure.

    Raises:
        DuplicateKeyError: a key stands twice.
        DocumentError: it is no such document.
    """
    if len(text) > MAX_YAML_LETTERS:
        raise DocumentError(f"it has more than {MAX_YAML_LETTERS:,} letters")
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_growth(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except DocumentError:
        raise
    except RecursionError as error:
        raise DocumentError("it is nested too deeply") from error
    # PyYAML lets through what int(), float() and date() raise, and a KeyError where a `!!bool` is none
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise DocumentError(str(error)) from error


def _refuse_growth(root: yaml.Node) -> None:
    """Refuse a document in which an alias stands within itself, or that would be huge with its aliases written out."""
    sizes: dict[int, int] = {}  # of nodes, written out; 0 while what is inside is counted

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known == 0:
            raise DocumentError("an alias stands within what it names")
        if known is not None:
            return known
        sizes[id(node)] = 0
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    if (num_nodes := size(root)) > MAX_YAML_NODES:
        raise DocumentError(f"it stands for {num_nodes:,} values, and {MAX_YAML_NODES:,} are allowed")
