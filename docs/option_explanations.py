"""An extension of griffe: an option's explanation, which `--help` prints, is its docstring in the API reference.

The options of YAML files and commands are dataclass fields that carry their text as `option(DEFAULT, TEXT)` or as
`field(default=DEFAULT, metadata={"help": TEXT})`. griffe reads source and would show these calls as the defaults.
"""

import ast
from typing import Any

import griffe

__all__ = ["OptionExplanations"]


class OptionExplanations(griffe.Extension):
    """Gives attributes that are options their explanation and their default."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Called for every attribute that griffe has read."""
        call = getattr(node, "value", None)
        if not isinstance(call, ast.Call) or not isinstance(attr.value, griffe.ExprCall):
            return
        default, explanation = _default_and_explanation(call)
        if explanation is None:
            return
        attr.docstring = griffe.Docstring(_text(explanation), lineno=node.lineno, parent=attr)
        attr.value = None if default is None else ast.unparse(default)


def _default_and_explanation(call: ast.Call) -> tuple[ast.expr | None, ast.expr | None]:
    if ast.unparse(call.func) == "option" and len(call.args) == 2:
        return call.args[0], call.args[1]
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    metadata = named.get("metadata")
    if ast.unparse(call.func) != "field" or not isinstance(metadata, ast.Dict):
        return None, None
    texts = dict(zip(map(ast.unparse, filter(None, metadata.keys)), metadata.values, strict=True))
    return named.get("default", named.get("default_factory")), texts.get("'help'")


def _text(node: ast.expr) -> str:
    """The text of a string that is not run: what would be put into an f-string stands there by its name."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue):
        names = [inner.id for inner in ast.walk(node.value) if isinstance(inner, ast.Name)]
        return f"`{names[-1] if names else ast.unparse(node.value)}`"
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return ast.unparse(node)
