from __future__ import annotations

from pathlib import Path

import pytest

from lit_gfs.configuration.config_files import shipped_configs
from lit_gfs.configuration.listing import description, listing
from lit_gfs.main import main
from support.command_line import refused


def test_every_shipped_configuration_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])

    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert dict(lines) == {name: description(path) for name, path in shipped_configs().items()}


@pytest.mark.parametrize(("name", "path"), shipped_configs().items())
def test_a_line_is_one_sentence(name: str, path: Path) -> None:
    line = description(path)

    assert line[-1] in ".?"
    assert 20 < len(line) < 200


def test_lists_are_grouped() -> None:
    paragraphs = [paragraph.splitlines() for paragraph in listing().split("\n\n")]

    folders = [{line.split()[0].rpartition("/")[0] for line in lines[1:]} for lines in paragraphs]
    assert folders == [{""}, {"recipes"}, {"studies"}]


def test_a_terminal_gets_lines_that_fit() -> None:
    assert max(map(len, listing(80).splitlines()[1:20])) <= 80


@pytest.mark.parametrize("name", ["recipes/gfs", "configs/recipes/gfs.yaml"])
def test_one_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", name])

    assert capsys.readouterr().out == shipped_configs()["recipes/gfs"].read_text()


@pytest.mark.usefixtures("empty_directory")
def test_an_unknown_name_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["configs", "quikstart"], capsys).endswith("; did you mean 'quickstart'?")


def test_the_first_sentence_goes_on_after_an_abbreviation(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# After Doe et al. 2025\n# in all. More.\nmodel: null  # None.\n")

    assert description(path) == "After Doe et al. 2025 in all."
