"""`docs/predict.md` names every option with its default, and every command in it is taken."""

import json
import re

import pytest
from doc_blocks import blocks_of
from test_docs_data import commands, read

from geomae.evaluation.posterior import DECODINGS
from geomae.predict.answer_schema import answer_schema
from geomae.predict.arguments import build_parser
from geomae.predict.formats import FORMATS

PAGE = "predict.md"


def test_every_option_stands_in_the_table_with_its_default():
    rows = dict(re.findall(r"^\| `--(\w+)` \| ([^|]+?) \|", read(PAGE), re.MULTILINE))
    options = {action.dest: action.default for action in build_parser()._actions if action.option_strings}
    del options["help"]
    assert rows.keys() == options.keys()
    for name, default in options.items():
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert float(rows[name]) == default


def test_every_format_every_decoding_and_every_column_is_explained():
    text = read(PAGE)
    table = text.partition("| `--format` | for |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(FORMATS)
    assert [name for name in DECODINGS if f"`{name}`" not in text] == []
    columns = set(answer_schema(compares=True).names) - {"problem"}
    assert not [name for name in columns if f"`{name}`" not in text]


@pytest.mark.parametrize("program", [("python", "-m", "geomae.predict"), ("accelerate", "launch")])
def test_every_command_is_parsed(program):
    found = list(commands(PAGE, *program))
    assert len(found) >= 2
    for words in found:
        if program[0] == "accelerate":
            words = words[words.index("geomae.predict") + 1 :]
        assert build_parser().parse_args(words).model == "outputs/quick/finetune"


def test_the_example_in_python_runs_as_it_stands(tmp_path, monkeypatch):
    (block,) = [block for block in blocks_of(f"docs/{PAGE}") if block.language == "python"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "my_photos").mkdir()
    (tmp_path / "my_photos" / "1.jpg").touch()
    exec(block.code, {})
    (feature,) = json.loads((tmp_path / "outputs/mine.geojson").read_text(encoding="utf-8"))["features"]
    assert feature["geometry"]["coordinates"] == [12.52, 55.78]
    assert "<coordinates>12.52000,55.78000</coordinates>" in (tmp_path / "outputs/mine.kml").read_text(encoding="utf-8")
