"""What `docs/data.md`, `docs/scaling.md` and `docs/recipes.md` tell a user to write exists: commands, options, keys."""

import ast
import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

import geomae.data
from geomae.data.__main__ import _build_parser
from geomae.data.listing import KINDS
from geomae.training import (
    DataArguments,
    FinetuneArguments,
    GeoMAEArguments,
    GeoMAETrainingArguments,
    PretrainArguments,
)

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["data.md", "scaling.md"]
WITH_KEYS = [*DOCUMENTS, "recipes.md"]
ARGUMENTS = (DataArguments, PretrainArguments, FinetuneArguments, GeoMAEArguments, GeoMAETrainingArguments)
KEYS = {field.name for arguments in ARGUMENTS for field in dataclasses.fields(arguments)}
OF_ACCELERATE = {"config_file", "num_machines", "machine_rank", "num_processes", "main_process_ip", "main_process_port"}
# Named in the text, too; its own environment is not here.
OF_IMG2DATASET = {
    "disable_all_reencoding",
    "distributor",
    "image_size",
    "incremental_mode",
    "number_sample_per_shard",
    "output_folder",
    "output_format",
    "processes_count",
    "resize_mode",
    "save_additional_columns",
    "subjob_size",
    "thread_count",
}


def read(document: str) -> str:
    return (ROOT / "docs" / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(document), re.MULTILINE | re.DOTALL)


def commands(document: str, *words: str) -> Iterator[list[str]]:
    """The arguments of every command that starts so, in fenced blocks."""
    for block in blocks(document, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            parts = shlex.split(line, comments=True)
            if parts[: len(words)] == list(words):
                yield parts[len(words) :]


def options_of_pack() -> set[str]:
    (commands_of_parser,) = (action for action in _build_parser()._actions if isinstance(action.choices, dict))
    assert isinstance(commands_of_parser.choices, dict)
    parsers: list[Any] = [commands_of_parser.choices[name] for name in ("inspect", "pack")]
    return {option.lstrip("-") for parser in parsers for action in parser._actions for option in action.option_strings}


def refuse_unknown(arguments: list[str]) -> None:
    _build_parser().parse_args(arguments)
    assert {part[2:] for part in arguments if part.startswith("--")} <= options_of_pack()  # argparse takes beginnings


@pytest.mark.parametrize("document", WITH_KEYS)
def test_every_command_of_geomae_data_is_parsed(document: str) -> None:
    found = list(commands(document, "python", "-m", "geomae.data"))
    assert found
    for arguments in found:
        refuse_unknown(arguments)


def test_every_command_in_the_table_of_sources_is_parsed() -> None:
    table = [line for line in read("data.md").splitlines() if line.startswith("|")]
    found = [command for line in table for command in re.findall(r"`(pack [^`]+)`", line)]
    assert len(found) >= len(KINDS)
    for command in found:
        refuse_unknown([*shlex.split(command), "--output_dir", "out"])


def test_every_kind_is_in_the_table_of_sources() -> None:
    assert not [kind for kind in KINDS if f"(`{kind}`)" not in read("data.md")]


@pytest.mark.parametrize("document", WITH_KEYS)
def test_every_option_and_key_in_the_text_exists(document: str) -> None:
    text = re.sub(r"^```.*?^```", "", read(document), flags=re.MULTILINE | re.DOTALL)
    known = options_of_pack() | KEYS | OF_IMG2DATASET
    named = set(re.findall(r"`[^`]*?--(\w+)", text)) | set(re.findall(r"`(\w+): [^`]+`", text))
    assert named
    assert not sorted(named - known)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_training_command_names_a_script_a_configuration_and_keys_that_exist(document: str) -> None:
    found = list(commands(document, "accelerate", "launch"))
    assert found
    for arguments in found:
        options = {argument[2:] for argument in arguments if argument.startswith("--")}
        assert not options - KEYS - OF_ACCELERATE
        files = [argument for argument in arguments if argument.endswith((".py", ".yaml"))]
        assert len(files) >= 2
        assert not [file for file in files if not (ROOT / file).is_file()]


def test_elastic_command_is_one_that_torchrun_takes() -> None:
    (words,) = commands("scaling.md", "torchrun")
    arguments = get_args_parser().parse_args(words)
    assert (arguments.nnodes, arguments.max_restarts, arguments.rdzv_backend) == ("1:2", 3, "c10d")
    assert (ROOT / arguments.training_script).is_file()
    config, *options = arguments.training_script_args
    assert (ROOT / config).is_file()
    assert {option[2:] for option in options if option.startswith("--")} <= KEYS


@pytest.mark.parametrize("document", ["data.md", "recipes.md"])
def test_every_key_of_a_yaml_block_exists(document: str) -> None:
    for block in blocks(document, "yaml"):
        assert set(yaml.safe_load(block)) <= KEYS


def test_every_name_that_a_python_block_imports_from_here_exists() -> None:
    imported = [
        name.name
        for block in blocks("data.md", "python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "geomae.data"
        for name in node.names
    ]
    assert imported
    assert not [name for name in imported if name not in geomae.data.__all__]


def test_scaling_quotes_the_benchmark_that_is_committed() -> None:
    record = json.loads((ROOT / "results" / "benchmarks" / "input_pipeline.json").read_text(encoding="utf-8"))
    speed = record["pipelines"]["ours"]["photos_per_worker_core_s"]
    memory = max(epoch["peak_uss_mb"] for epoch in record["memory"]["epochs"])
    text = read("scaling.md")
    assert f"| training photos per worker-core-second | {speed:,.0f} |" in text
    assert f"commit `{record['commit'][:12]}`" in text
    assert f"| {memory:.0f} MB | the same file |" in text


def test_data_quotes_the_crops_per_core_second_that_are_committed() -> None:
    for name, store in (("input_pipeline", "427x320"), ("input_pipeline_short_side_256", "341x256")):
        file = ROOT / "results" / "benchmarks" / f"{name}.json"
        entries = json.loads(file.read_text(encoding="utf-8"))["pipelines"]
        one, four = (entries[key]["photos_per_worker_core_s"] for key in ("ours", "ours_four_crops"))
        (row,) = [line for line in read("data.md").splitlines() if line.startswith(f"| {store}")]
        assert row.endswith(f"| {one:,.0f} | {four:,.0f} |")
