"""One YAML file and the command line: what is read, what wins, and what is refused by name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from geomae.errors import ConfigError
from geomae.training import Variants, given_keys, parse_config


@dataclass
class Settings:
    exclusive_keys = (("learning_rate", "base_learning_rate"),)

    shuffle_buffer: int = field(default=7, metadata={"help": "photos shuffled together"})
    learning_rate: float = 1e-3
    base_learning_rate: float | None = None
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    names: list[str] = field(default_factory=list)
    name: str | None = None
    flag: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    kind: Literal["big", "small"] = "big"

    def __post_init__(self) -> None:
        if self.shuffle_buffer < 1:
            raise ValueError("shuffle_buffer must be at least 1")


@dataclass
class Big:
    width: int = 100


@dataclass
class Small:
    height: int = 1


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def parse(text: str, *words: str) -> Settings:
        (tmp_path / "run.yaml").write_text(text)
        return parse_config([Settings], [str(tmp_path / "run.yaml"), *words])[0]

    return parse


def test_file_fills_the_dataclass_and_the_command_line_wins(read: Any) -> None:
    settings = read("shuffle_buffer: 3\nname: abc\n", "--shuffle_buffer", "5")
    assert settings == Settings(shuffle_buffer=5, name="abc")


def test_number_in_scientific_notation_is_a_number(read: Any) -> None:
    assert read("learning_rate: 1e-4").learning_rate == 1e-4  # PyYAML reads a text
    assert read("shuffle_buffer: 1e3").shuffle_buffer == 1000
    assert read("", "--learning_rate", "1e-4").learning_rate == 1e-4


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--sizes", "5", "6"], {"sizes": [5, 6]}),
        (["--sizes=5"], {"sizes": [5]}),
        (["--names", "2024"], {"names": ["2024"]}),
        (["--names", "2024", "1e3"], {"names": ["2024", "1e3"]}),
        (["--names", '["2024", a]'], {"names": ["2024", "a"]}),
        (["--no_flag"], {"flag": False}),
        (["--flag", "false"], {"flag": False}),
        (["--flag"], {"flag": True}),
        (["--name", "null"], {"name": None}),
        (["--name", "123"], {"name": "123"}),
        (["--shuffle-buffer", "9"], {"shuffle_buffer": 9}),
        (["--options", '{"a": 1}'], {"options": {"a": 1}}),
        (["--kind", "small"], {"kind": "small"}),
        (["--learning_rate", "-1.5"], {"learning_rate": -1.5}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_line_spells_every_type(read: Any, words: list[str], expected: dict[str, Any]) -> None:
    assert read("name: from_file", *words) == Settings(**{"name": "from_file", **expected})


def test_unknown_key_names_its_nearest_neighbour(read: Any, tmp_path: Path) -> None:
    expected = f"unknown key shufle_buffer in {tmp_path}/run.yaml; did you mean shuffle_buffer?"
    with pytest.raises(ConfigError) as caught:
        read("shufle_buffer: 3")
    assert str(caught.value) == expected
    with pytest.raises(ConfigError, match=r"unknown key --shufle_buffer on the command line; did you mean --shuffle_b"):
        read("", "--shufle_buffer", "3")
    with pytest.raises(ConfigError, match=r"unknown key zzz in .*; --help lists"):
        read("zzz: 3")


def test_abbreviated_key_is_refused(read: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean --shuffle_buffer"):
        read("", "--shuffle_buf", "3")


def test_key_given_twice_is_refused(read: Any) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml: key flag stands twice, the second time on line 3"):
        read("flag: true\nname: a\nflag: false\n")
    with pytest.raises(ConfigError, match="--name stands twice"):
        read("", "--name", "a", "--name", "b")


@pytest.mark.parametrize(
    "text, message",
    [
        ("shuffle_buffer: many", r"shuffle_buffer in .*run.yaml is 'many' \(str\); it must be a whole number"),
        ("shuffle_buffer: 1.5", "must be a whole number"),
        ("shuffle_buffer: true", "must be a whole number"),
        ("shuffle_buffer: .inf", r"shuffle_buffer in .*run.yaml is inf \(float\); it must be a whole number"),
        ("learning_rate: high", "must be a number"),
        ("learning_rate: null", "must be a number"),
        ("flag: 1", "must be true or false"),
        ("name: 3", "must be text"),
        ("sizes: [a]", "sizes in .* must be a list of a whole number"),
        ("kind: huge", "must be 'big' or 'small'"),
        ("options: 3", "must be a mapping"),
    ],
    ids=lambda value: value if ":" in value and "run.yaml" not in value else "",
)
def test_value_of_the_wrong_type_is_named_with_key_and_file(read: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_broken_file_is_refused_with_its_path(read: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read nowhere.yaml"):
        parse_config([Settings], ["nowhere.yaml"])
    with pytest.raises(ConfigError, match=r"run.yaml is not valid YAML"):
        read("a: [")
    with pytest.raises(ConfigError, match="must hold lines"):
        read("- a\n- b\n")
    (tmp_path / "photo.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ConfigError, match="not a text file"):
        parse_config([Settings], [str(tmp_path / "photo.yaml")])
    assert read("") == Settings()


def test_broken_value_on_the_command_line_is_refused_with_its_key(read: Any) -> None:
    with pytest.raises(ConfigError, match=r"--sizes on the command line is '\[1,', which is no value"):
        read("", "--sizes", "[1,")


def test_refusal_of_the_dataclass_names_the_file(read: Any) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml: shuffle_buffer must be at least 1"):
        read("shuffle_buffer: 0")


def test_yaml_cannot_run_code(read: Any) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        read("name: !!python/object/apply:os.getcwd []")


def test_of_two_exclusive_keys_the_command_line_wins_and_one_place_may_not_hold_both(read: Any) -> None:
    settings = read("base_learning_rate: 1e-3", "--learning_rate", "0.5")
    assert settings.base_learning_rate is None
    assert settings.learning_rate == 0.5
    with pytest.raises(ConfigError, match=r"run.yaml sets both learning_rate and base_learning_rate"):
        read("learning_rate: 1\nbase_learning_rate: 1")


def test_stray_word_is_refused(read: Any) -> None:
    with pytest.raises(ConfigError, match=r"'other.yaml' on the command line belongs to no key"):
        read("", "other.yaml")
    with pytest.raises(ConfigError, match="--name on the command line has no value"):
        read("", "--name")


def test_variant_is_chosen_by_its_key_from_file_or_command_line_or_default(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    types = (Settings, Variants("kind", {"big": Big, "small": Small}))
    path.write_text("width: 5")
    assert parse_config(types, [str(path)])[1] == Big(5)
    path.write_text("kind: small\nheight: 2")
    assert parse_config(types, [str(path)])[1] == Small(2)
    with pytest.raises(ConfigError, match="unknown key height"):
        parse_config(types, [str(path), "--kind", "big"])
    with pytest.raises(ConfigError, match="must be one of big, small"):
        parse_config(types, [str(path), "--kind", "huge"])


def test_given_keys_are_those_of_file_and_command_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: a")
    assert given_keys([str(tmp_path / "run.yaml"), "--shuffle-buffer", "3"]) == {"name", "shuffle_buffer"}


def test_help_lists_every_key_and_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config((Settings, Variants("kind", {"big": Big, "small": Small})), ["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for words in ("CONFIG.yaml", "--shuffle_buffer", "photos shuffled together", "--width", "--height"):
        assert words in printed
