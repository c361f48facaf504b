"""What may import what: imports point downward, and the package stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lmcodec

PACKAGE = Path(lmcodec.__file__).parent
# A module may import from its own rank or below.
RANK = {
    **dict.fromkeys(["errors", "ending", "_kernel", "models"], 0),
    **dict.fromkeys(["lm", "frame", "coder", "profile", "tensor_files"], 1),
    **dict.fromkeys(["engine", "planes"], 2),
    "codec": 3,
    "file": 4,
    **dict.fromkeys(["integrations", "measure", "tensors", "train"], 5),
    **dict.fromkeys(["cli", "testing"], 6),
    "": 7,
}
# The same within the codec.
ROOM_RANK = {"arguments": 0, "base": 0, "spec": 1, "pipeline": 2, "levels": 3} | {
    "cover": 4,
    "prior": 5,
    "decompressor": 6,
    "survey": 6,
    "records": 6,
    "proof": 7,
    "salvage": 7,
    "compressor": 8,
}


def modules() -> list[tuple[Path, ast.Module]]:
    return [(p, ast.parse(p.read_text(encoding="utf-8"))) for p in sorted(PACKAGE.rglob("*.py"))]


def imported(tree: ast.Module) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "lmcodec":
            names += [f"lmcodec.{alias.name}" for alias in node.names if alias.name in RANK]
        elif isinstance(node, ast.ImportFrom) and node.module == "lmcodec.lm":
            names += [f"lmcodec.lm.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def part(dotted: str) -> str:
    return dotted.split(".")[1] if "." in dotted else ""


def test_imports_point_downward() -> None:
    wrong = []
    for path, tree in modules():
        inside = path.relative_to(PACKAGE).parts
        own = "" if path.stem in ("__init__", "__main__") and len(inside) == 1 else path.stem
        own = inside[0] if len(inside) > 1 else own
        for name in imported(tree):
            if name.split(".")[0] == "lmcodec" and part(name) and RANK[part(name)] > RANK[own]:
                wrong.append(f"{path.name} imports {name}")
    assert wrong == []


def test_imports_of_the_codecs_rooms_point_downward() -> None:
    """One of another of the same rank is an import of a room beside."""
    wrong = []
    folder = PACKAGE / "codec"
    assert {path.stem for path in folder.glob("*.py")} == {*ROOM_RANK, "__init__"}
    for room, rank in ROOM_RANK.items():
        for name in imported(ast.parse((folder / f"{room}.py").read_text(encoding="utf-8"))):
            parts = name.split(".")
            if parts[:2] == ["lmcodec", "codec"] and (len(parts) < 3 or ROOM_RANK[parts[2]] >= rank):
                wrong.append(f"{room} imports {name}")
    assert wrong == []


def test_no_pickle_anywhere() -> None:
    banned = {"pickle", "marshal", "shelve", "dill", "joblib"}
    for path, tree in modules():
        names = imported(tree)
        if path == PACKAGE / "integrations" / "joblib.py":
            # What joblib is told about a compressed file: nothing is loaded with it.
            assert [n for n in names if n.startswith("joblib")] == ["joblib.compressor"]
            names = [n for n in names if n != "joblib.compressor"]
        assert not banned & {n.split(".")[0] for n in names}, path
        calls = {
            f"{n.func.value.id}.{n.func.attr}"
            for n in ast.walk(tree)
            if isinstance(n, ast.Call)
            and isinstance(n.func, ast.Attribute)
            and isinstance(n.func.value, ast.Name)
        }
        assert not calls & {"torch.load", "torch.save", "np.load", "np.save"}, path


def test_coder_means_the_range_coder() -> None:
    """No class has the name, and no variable but the module's where that is imported."""
    for path, tree in modules():
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        found = {name for name in names if name.lower() == "coder"}
        assert not found or "lmcodec.coder" in imported(tree), path
    for path in (PACKAGE / "native").glob("*.[ch]*"):
        assert not re.search(r"\b(?:class|struct) Coder\b", path.read_text(encoding="utf-8")), path


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], check=True, capture_output=True, encoding="utf-8"
    )
    return set(run.stdout.split())


def test_import_is_light() -> None:
    assert not loaded_by("import lmcodec") & {"torch", "transformers", "numpy", "click"}
    # Nor does what codes no text.
    light = "import lmcodec; lmcodec.open, lmcodec.LmcodecError; lmcodec.decompress(lmcodec.compress(b''))"
    assert not loaded_by(light) & {"torch", "numpy", "lmcodec._kernel", "concurrent.futures", "ctypes"}
    # The command line loads what a subcommand needs when it is called.
    assert not loaded_by("import lmcodec.cli.main") & {"torch", "numpy"}


def test_decoding_loads_little() -> None:
    golden = Path(__file__).with_name("golden")
    frame, model = str(golden / "network.lmz"), str(golden / "network.lmm")
    decode = f"import lmcodec; lmcodec.decompress(open({frame!r}, 'rb').read(), model={model!r})"
    loaded = loaded_by(decode)
    assert {"numpy", "lmcodec.engine", "lmcodec.lm.kinds"} <= loaded
    # The encoder's coder, and modules that take milliseconds.
    assert not loaded & {"constriction", "click", "importlib.resources", "tempfile", "concurrent.futures"}


def test_the_trainer_needs_nothing_but_torch_and_numpy() -> None:
    """A machine with a GPU gets the package as a folder: no kernel, no click, no constriction."""
    pytest.importorskip("torch")
    blocked = ("click", "constriction", "lmcodec._kernel", "matplotlib", "tokenizers")
    block = "; ".join(f"sys.modules[{name!r}] = None" for name in blocked)
    loaded_by(f"{block}; import lmcodec.train.__main__, lmcodec.train.loop")


def kinds_of_models() -> set[str]:
    """The packages in lm/: one for each kind."""
    return {path.parent.name for path in (PACKAGE / "lm").glob("*/__init__.py")}


def test_a_kind_is_known_to_itself_alone() -> None:
    """What else needs one goes through `lm/kinds.py`; the trainer makes recurrent networks and no others."""
    assert "recurrent" in kinds_of_models()
    wrong = []
    for path, tree in modules():
        inside = path.relative_to(PACKAGE).parts
        for name in imported(tree):
            # `from lmcodec.lm import recurrent` and `from lmcodec.lm.recurrent import ...`
            for kind in kinds_of_models():
                own = inside[:2] == ("lm", kind) or (kind == "recurrent" and inside[0] == "train")
                if f"{name}.".startswith(f"lmcodec.lm.{kind}.") and not own:
                    wrong.append(f"{'/'.join(inside)} imports {name}")
    assert wrong == []
