"""An extension of griffe: an option's explanation, which `--help` prints, is its docstring in the API reference.

The options of YAML files and commands are dataclass fields that carry their text as `option(DEFAULT, TEXT)` or as
`field(default=DEFAULT, metadata={"help": TEXT})`. griffe reads source and would show these calls as the defaults.
The text is read from the class itself, because some of it is put together.
"""

import ast
import importlib
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
        attr.docstring = griffe.Docstring(_help_of(attr), lineno=node.lineno, parent=attr)
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


def _help_of(attribute: griffe.Attribute) -> str:
    """The explanation as `--help` prints it, with the values that an f-string puts into it."""
    owner: Any = attribute.parent
    module = importlib.import_module(owner.module.canonical_path)
    return str(getattr(module, owner.name).__dataclass_fields__[attribute.name].metadata["help"])
