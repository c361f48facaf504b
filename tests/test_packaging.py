"""What the package requires on each system, and what its wheels hold."""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "lmcodec" / "native").is_dir(), reason="not a checkout")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(monkeypatch: pytest.MonkeyPatch, host: str) -> list[Requirement]:
    """What a build requires with a Python that was built for `host`."""
    path = ROOT / "lmcodec" / "native" / "requirements.py"
    spec = importlib.util.spec_from_file_location("requirements", path)
    assert spec is not None
    assert spec.loader is not None
    provider = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(provider)
    settings = project()["tool"]["scikit-build"]["metadata"]["dependencies"]
    settings = {key: value for key, value in settings.items() if not key.startswith("provider")}
    monkeypatch.setattr(sysconfig, "get_config_var", {"HOST_GNU_TYPE": host}.get)
    return [Requirement(line) for line in provider.dynamic_metadata("dependencies", settings)]


GLIBC, MUSL = "x86_64-pc-linux-gnu", "x86_64-pc-linux-musl"
# Those that constriction 0.5.0 has wheels for; it has no source archive.
WITH = [
    ("linux", "x86_64", "3.10"),
    ("linux", "x86_64", "3.14"),
    ("darwin", "arm64", "3.12"),
    ("darwin", "x86_64", "3.14"),
    ("win32", "AMD64", "3.11"),
]
WITHOUT = [
    ("linux", "aarch64", "3.12"),
    ("linux", "riscv64", "3.14"),
    ("linux", "x86_64", "3.15"),
    ("win32", "ARM64", "3.13"),
    ("freebsd14", "amd64", "3.11"),
]


@pytest.mark.parametrize(("system", "machine", "python"), WITH + WITHOUT)
def test_constriction_is_required_where_it_has_wheels(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, python: str
) -> None:
    environment = {"sys_platform": system, "platform_machine": machine, "python_version": python}
    names = {
        each.name
        for each in requirements(monkeypatch, GLIBC)
        if each.marker is None or each.marker.evaluate(environment)
    }
    expected = {"constriction"} if (system, machine, python) in WITH else set()
    assert names == {"numpy", "click"} | expected


def test_a_wheel_for_musl_requires_no_constriction(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {each.name for each in requirements(monkeypatch, MUSL)} == {"numpy", "click"}


def test_the_installed_package_requires_what_the_project_says(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [Requirement(line) for line in metadata.requires("lmcodec") or []]
    base = {str(each) for each in installed if not each.marker or "extra" not in str(each.marker)}
    host = MUSL if "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE")) else GLIBC
    assert base == {str(each) for each in requirements(monkeypatch, host)}


def test_stable_abi_begins_where_nanobind_has_it() -> None:
    """And the version that is built for it is among those that cibuildwheel builds."""
    tools = project()["tool"]
    api = tools["scikit-build"]["wheel"]["py-api"]
    assert api == "cp312"
    built = re.findall(r"cp3\d+", tools["cibuildwheel"]["build"])
    assert built[:3] == ["cp310", "cp311", api], "earlier versions have wheels of their own"


def test_cibuildwheel_tests_what_is_there() -> None:
    settings = project()["tool"]["cibuildwheel"]
    paths = re.findall(r"\S+\.py", settings["test-command"])
    assert len(paths) > 2
    for path in [*paths, *settings["test-sources"]]:
        assert (ROOT / path).exists(), path
