"""Commands refuse what they do not know, and say what was meant."""

import argparse

import pytest

from geomae.command_line import CommandParser
from geomae.data.__main__ import main


def parser() -> CommandParser:
    command = CommandParser(prog="tool")
    packing = command.add_subparsers(required=True).add_parser("pack")
    packing.add_argument("source")
    packing.add_argument("--output_dir", required=True)
    packing.add_argument("--validation_fraction", type=float)
    return command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ouput_dir", "x"], "unknown option --ouput_dir; did you mean --output_dir?"),
        (
            ["--output_dir", "x", "--validaton_fraction=0.1"],
            "--validaton_fraction; did you mean --validation_fraction?",
        ),
        (["--output_dir", "x", "--validation", "0.1"], "--validation; did you mean --validation_fraction?"),
        (["--output_dir", "x", "--zzz"], "unknown option --zzz; --help lists the known ones"),
        (["--output_dir", "x", "more"], "unrecognized arguments: more"),
        ([], "the following arguments are required: --output_dir"),
    ],
)
def test_unknown_option_of_a_subcommand_is_refused_with_the_nearest_and_its_own_usage(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["pack", "photos", *words])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("usage: tool pack ")


def test_what_stands_behind_two_dashes_is_no_option() -> None:
    assert parser().parse_args(["pack", "--output_dir", "x", "--", "--photos"]).source == "--photos"


def test_known_options_are_parsed_as_argparse_does() -> None:
    expected = argparse.Namespace(source="photos", output_dir="x", validation_fraction=0.25)
    assert parser().parse_args(["pack", "photos", "--output_dir=x", "--validation_fraction", "0.25"]) == expected


def test_commands_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pack", "photos", "--output_dir", "x", "--validaton_fraction", "0.25"])
    assert "did you mean --validation_fraction?" in capsys.readouterr().err
