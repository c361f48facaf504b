"""Documents: README's size, links, options and files that they name, and examples that run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import click
import pytest
from test_imports import RANK, ROOM_RANK

import lmcodec
import lmcodec.codec
from lmcodec.lm.store import RETIRED, SHIPPED

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "lmcodec" / "docs"
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "corpora" / "README.md", *sorted(DOCS.glob("*.md"))]
# Pages that are read as prose; FORMAT.md is a specification with lines of its own length.
PROSE = [README, *(page for page in sorted(DOCS.glob("*.md")) if page.name != "FORMAT.md")]
# A source archive leaves out benchmarks and .ci, which pages link to.
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="not a checkout")
TEXT = b"It was a dark and stormy night; the rain fell in torrents, except at occasional intervals.\n" * 40
MAX_LINES, MAX_COLUMNS = 120, 110


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text("utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings can be linked by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture
def reader_folder(tmp_path: Path) -> Path:
    """A folder as a reader's would be."""
    (tmp_path / "book.txt").write_bytes(TEXT)
    (tmp_path / "README.md").write_bytes(README.read_bytes())
    return tmp_path


@pytest.mark.parametrize("page", PROSE, ids=name_of)
def test_lines_are_short(page: Path) -> None:
    long = [f"line {i}" for i, line in enumerate(read(page).splitlines(), 1) if len(line) > MAX_COLUMNS]
    assert long == []


def test_readme_is_one_page() -> None:
    assert len(read(README).splitlines()) <= MAX_LINES


def test_pictures_are_light() -> None:
    pictures = [path for path in DOCS.iterdir() if path.suffix != ".md"]
    assert pictures
    assert all(path.stat().st_size <= 60_000 for path in pictures)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        path, _, fragment = target.partition("#")
        if re.match("[a-z]+:", path):
            continue
        linked = page.parent / path if path else page
        if not linked.exists() or (fragment and fragment not in anchors(linked)):
            wrong.append(target)
    assert wrong == []


def run_in_shell(command: str, folder: Path) -> str:
    """What a command prints that runs the installed programs; POSIX only."""
    shell, scripts = shutil.which("bash"), sysconfig.get_path("scripts")
    if os.name != "posix" or shell is None or not (Path(scripts) / "lmz").exists():
        pytest.skip("needs bash and the installed programs")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LMCODEC_")}
    environment["PATH"] = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        [shell, "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_readme_commands_run(reader_folder: Path) -> None:
    """All but the installation, which .ci/run does."""
    commands = [line for block in blocks(README, "sh") for line in block.splitlines()]
    commands = [re.sub(r"^pip install \S+ && ", "", line) for line in commands]
    assert "pytest -n auto" in commands
    commands.remove("pytest -n auto")
    assert len(commands) == 4
    for command in commands:
        run_in_shell(command, reader_folder)
    assert (reader_folder / "restored.txt").read_bytes() == TEXT


def test_readme_has_the_command_that_ci_runs() -> None:
    """As `sed -n 's/^pip install \\. && //p'` finds it, and what it leaves is what .ci/run removes."""
    found = re.findall(r"^pip install \. && (.*)$", read(README), re.MULTILINE)
    assert len(found) == 1
    assert found[0].startswith("lmz README.md && ")
    assert "README.md.lmz" in read(ROOT / ".ci" / "run")


@pytest.mark.parametrize("page", [README, DOCS / "LIBRARY.md"], ids=name_of)
def test_python_examples_run(page: Path, reader_folder: Path) -> None:
    """In a process of their own, one after another, warnings as errors but for files that are left open."""
    code = "\n".join(blocks(page, "python"))
    assert code.count("\n") >= 8
    run = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", code],
        cwd=reader_folder,
        capture_output=True,
        text=True,
        timeout=300,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""


def test_examples_with_other_libraries_run(reader_folder: Path) -> None:
    """Each in a process of its own, where what it imports is installed."""
    examples, ran = blocks(DOCS / "INTEGRATIONS.md", "python"), 0
    for code in examples:
        libraries = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
        if any(importlib.util.find_spec(library) is None for library in libraries):
            continue
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=reader_folder,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(reader_folder / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
            encoding="utf-8",
        )
        assert run.returncode == 0, run.stderr
        ran += 1
    assert ran >= 2  # those of the standard library


def test_public_names_are_documented() -> None:
    page = read(DOCS / "LIBRARY.md")
    missing = [n for n in lmcodec.__all__ if n != "__version__" and not re.search(rf"\b{n}\b", page)]
    assert missing == []


def commands_of(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for child, inner in command.commands.items():
            yield from commands_of(inner, f"{name} {child}")


def test_commands_and_options_are_documented() -> None:
    """Each option in the section of its command; those of `lmz` stand for its like in the group, too."""
    from lmcodec.cli.lmz import front
    from lmcodec.cli.main import group

    page = read(DOCS / "COMMANDS.md")
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", page, re.MULTILINE))
    sections["lmcodec"] = page.partition("\n## ")[0]
    for name in ("compress", "decompress", "test", "list"):
        sections[name] = sections["lmz"] + sections["compress, decompress, test, list"]
    missing = []
    for name, command in [*commands_of(group, "lmcodec"), ("lmz", front("lmz", "compress", ""))]:
        section = sections[f"{name} ".split(" ")[1] or name]
        named = set(re.findall(r"(?<![\w-])--?[a-z0-9][a-z0-9-]*", section, re.IGNORECASE))
        named |= {f"-{n}" for n in range(1, 10)} if "`-1` to `-9`" in section else set()
        if name not in section and not isinstance(command, click.Group):
            missing.append(name)
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                missing += [f"{name} {option}" for option in parameter.opts if option not in named]
    assert missing == []


def test_environment_variables_are_documented() -> None:
    """Those that the package's Python reads."""
    page, found = read(DOCS / "COMMANDS.md"), set()
    for path in (ROOT / "lmcodec").rglob("*.py"):
        found |= set(re.findall(r"\"(LMCODEC_[A-Z_]+)\"", read(path)))
    assert len(found) >= 6
    assert [name for name in sorted(found) if f"`{name}`" not in page] == []


def test_configuration_keys_are_documented() -> None:
    from lmcodec.train.config import TrainConfig

    page = read(DOCS / "TRAINING.md")
    missing = []
    for name, kind in get_type_hints(TrainConfig).items():
        if not is_dataclass(kind):
            continue
        table = page.partition(f"`[{name}]`")[2].partition("\n`[")[0]
        missing += [f"{name}.{key.name}" for key in fields(kind) if f"`{key.name}`" not in table]
    assert missing == []


def test_models_are_documented() -> None:
    page = read(DOCS / "MODELS.md")
    models = {number: (shipped.name, shipped.model_id) for number, shipped in SHIPPED.items()}
    models |= {number: (retired.name, retired.model_id) for number, retired in RETIRED.items()}
    for number, (name, model_id) in models.items():
        assert f"\n| {number} | `{name}` | `{model_id}` |" in page, number


def test_contents_of_commands_name_every_section() -> None:
    page = read(DOCS / "COMMANDS.md")
    contents, _, rest = page.partition("\n## ")
    linked = set(re.findall(r"\]\(#([\w-]+)\)", contents))
    sections = re.findall(r"^## (.+)$", without_code(f"## {rest}"), re.MULTILINE)
    missing = [s for s in sections if re.sub(r"[^\w\- ]", "", s.lower()).replace(" ", "-") not in linked]
    assert len(sections) >= 12
    assert missing == []


def test_ranks_are_those_that_imports_are_held_to() -> None:
    table = read(DOCS / "ARCHITECTURE.md").partition("\n## Ranks\n")[2].partition("\n## ")[0]
    ranks = dict(re.findall(r"^\| (\d) \| (.+) \|$", table, re.MULTILINE))
    for part, rank in RANK.items():
        assert not part or f"`{part}`" in ranks[str(rank)], part


def test_the_codec_names_its_rooms() -> None:
    described = set(re.findall(r"`(\w+)`", lmcodec.codec.__doc__ or ""))
    assert set(ROOM_RANK) <= described


def named_files() -> dict[str, list[str]]:
    """Files that ARCHITECTURE.md's map names, by the folder that its table is of."""
    page = read(DOCS / "ARCHITECTURE.md").partition("## The map of files")[2].partition("\n## ")[0]
    named: dict[str, list[str]] = {}
    for folder, table in re.findall(r"^`(lmcodec/[\w/]*)`.*?:\n\n((?:\|.*\n)+)", page, re.MULTILINE):
        first_cells = " ".join(line.split("|")[1] for line in table.splitlines())
        named[folder.rstrip("/")] = re.findall(r"`([\w.]+\.\w+)`", first_cells)
    return named


MODULE_SUFFIXES = {".py", ".pyi", ".h", ".cpp"}


# Folders with modules, those of kinds of models included; `models` is in the table of what lies elsewhere.
FOLDERS = sorted(
    {path.parent.relative_to(ROOT / "lmcodec").as_posix() for path in (ROOT / "lmcodec").rglob("*.py")}
    | {"native"}
)


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != "models"])
def test_the_map_of_files_is_that_of_the_tree(folder: str) -> None:
    path = ROOT / "lmcodec" / folder
    there = {p.name for p in path.iterdir() if p.suffix in MODULE_SUFFIXES}
    listed = named_files().get(path.relative_to(ROOT).as_posix(), [])
    named = set(listed)
    assert sorted(listed) == sorted(named), "in more than one line"
    assert there - named == set(), "not in lmcodec/docs/ARCHITECTURE.md"
    assert {n for n in named if Path(n).suffix in MODULE_SUFFIXES} - there == set(), "named, but not there"


def test_files_named_in_recipes_exist() -> None:
    page = read(DOCS / "ARCHITECTURE.md").partition("## Where to add")[2]
    paths = set(re.findall(r"`((?:lmcodec|tests|benchmarks)/[\w/.-]+\.\w+)`", page))
    wrong = [p for p in paths if "NAME" not in p and "-N." not in p and not (ROOT / p).exists()]
    assert len(paths) >= 8
    assert wrong == []
