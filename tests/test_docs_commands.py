"""Every command block of README.md and docs/ is run, or says what it needs; every command in them is taken.

Taken: the program's own parser accepts the words, and every configuration file that they name is read. What is not
marked is run by tests/test_docs_blocks_run.py.
"""

import argparse
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser
from doc_blocks import NEEDS, PAGES, Block, blocks_of, commands_of
from launching import ROOT
from torch.distributed.run import get_args_parser
from transformers import HfArgumentParser

# Another test has imported a program that is started here as Python starts it: it is meant to be run a second time.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
OURS = re.compile(r"^(?:configs|benchmarks|docs|geomae|modeling)/[\w/.-]+\.\w+$|^run_\w+\.py$|^app\.py$")
PROGRAMS_OF_OTHERS = {
    *("cat", "cd", "cp", "echo", "grep", "ls", "mkdir", "source"),
    *("git", "hf", "img2dataset", "pip", "pre-commit", "python3.11", "tensorboard", "trackio", "wandb"),
}
MODULES_OF_OTHERS = {"http.server", "pip", "venv"}


class Taken(BaseException):
    """Raised where a program has parsed its words: nothing behind it is run."""


@pytest.fixture(autouse=True)
def parses_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program stops when its words are parsed; beginnings of options are refused, which argparse would take."""
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *words: Any) -> None:
        refuse_beginnings(self)
        parse(self, *words)
        raise Taken

    def parse_dict(self: HfArgumentParser, *_: Any, **__: Any) -> None:
        raise Taken  # parse_config has read the file and checked every key and value; the rest looks for data

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(HfArgumentParser, "parse_dict", parse_dict)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def refuse_beginnings(parser: argparse.ArgumentParser) -> None:
    parser.allow_abbrev = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                refuse_beginnings(command)


def take(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails unless the program that a command names takes its words."""
    absent = [word for word in words if OURS.match(word) and not (ROOT / word).is_file()]
    assert not absent, f"{absent} is not in the checkout"
    program = Path(words[0]).name
    if program == "python" and words[1] == "-m":
        assert words[2].startswith("geomae.") or words[2] in MODULES_OF_OTHERS, words
        if words[2] not in MODULES_OF_OTHERS:
            run_as_main(words[2], words[3:], monkeypatch)
    elif program == "python":
        run_as_main(words[1], words[2:], monkeypatch)
    elif program in ("accelerate", "torchrun"):
        assert program == "torchrun" or words[1] == "launch", words
        parser = get_args_parser() if program == "torchrun" else launch_command_parser()
        launched, unknown = parser.parse_known_args(words[1:] if program == "torchrun" else words[2:])
        assert not unknown
        run_as_main(launched.training_script, launched.training_script_args, monkeypatch)
    elif program == "make":
        targets = {word for word in words[1:] if "=" not in word}
        assert targets <= set(re.search(r"^\.PHONY: (.*)$", Path("Makefile").read_text(), re.MULTILINE)[1].split())  # type: ignore[index]
    else:
        assert program in PROGRAMS_OF_OTHERS, words


def run_as_main(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a script or a module as Python does, and expect it to parse its words and to go on."""
    monkeypatch.setattr(sys, "argv", [program, *words])
    try:
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")
    except Taken:
        return
    except SystemExit as ended:
        pytest.fail(f"{program} {' '.join(words)}: {ended.code}")
    pytest.fail(f"{program} ended without parsing {' '.join(words)}")


def test_every_block_is_of_a_known_language_and_every_mark_is_one_that_says_why() -> None:
    assert len(BLOCKS) > 30
    for block in BLOCKS:
        assert block.language in ("bash", "python", "yaml", ""), block
        assert set(block.needs) <= set(NEEDS), f"{block} needs {block.needs}; the words are {', '.join(NEEDS)}"
        if block.run_by:
            test = (ROOT / "tests" / block.run_by).read_text(encoding="utf-8")
            programs = {command[1] for command in commands_of(block)}  # of `python app.py`
            assert Path(block.page).name in test or all(program in test for program in programs), block


def test_no_mark_is_left_without_its_block() -> None:
    for page in PAGES:
        marks = re.findall(r"^<!-- (?:needs|run by):", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert len(marks) == sum(bool(block.needs or block.run_by) for block in blocks_of(page)), page


def test_blocks_without_a_language_hold_no_commands() -> None:
    for block in BLOCKS:
        if not block.language:
            assert not re.search(r"^\$ |^(?:python|accelerate|make|pip|cd) ", block.code, re.MULTILINE), block


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_blocks_compile(block: Block) -> None:
    compile(block.code, str(block), "exec")


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language == "bash" for block in blocks_of(page))])
def test_every_command_of_a_page_is_taken_by_its_program(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block for block in blocks_of(page) if block.language == "bash"]
    commands = [command for block in blocks for command in commands_of(block)]
    assert commands
    for command in commands:
        take(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "accelerate launch run_finetune_geo.py configs/finetune/demo.yaml --learning_rat 1e-3",
        "accelerate launch --mixed run_finetune_geo.py configs/finetune/demo.yaml",
        "python run_evaluate_geo.py configs/evaluate/absent.yaml",
        "python -m geomae.data pack my_photos --output data/my_photos",
        "make every_coffee",
        "geomae predict photo.jpg",
    ],
)
def test_a_command_with_a_mistake_is_noticed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, SystemExit)):
        take(command.split(), monkeypatch)
