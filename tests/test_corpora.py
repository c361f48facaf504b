"""Manifests, what `corpus verify` finds, and synthetic text that never changes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from lmcodec.errors import ConfigError, Corrupt
from lmcodec.measure import corpora
from lmcodec.measure.synthetic import KINDS, SplitMix64, generate, pieces

# The totals that their publishers give, and ours.
TOTALS = {
    "calgary": 3_141_622,
    "canterbury": 2_810_784,
    "dev": 9_058_232,
    "enwik8": 10**8,
    "enwik9": 10**9,
    "silesia": 211_938_580,
}


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-m", "lmcodec", "corpus", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False)


def test_the_manifests() -> None:
    assert {name: corpora.load(name).nbytes for name in corpora.names()} == TOTALS
    for name in TOTALS:
        corpus = corpora.load(name)
        assert corpus.name == name
        assert corpus.seen in ("no", "in part", "yes")
        assert corpus.published
        assert corpus.licence
        assert corpus.sources
        if name != "calgary":
            assert all("sha256" in file.checks for file in corpus.files)
    # One file of both: what two publishers say of it agrees.
    pic = next(file for file in corpora.load("calgary").files if file.name == "pic")
    ptt5 = next(file for file in corpora.load("canterbury").files if file.name == "ptt5")
    assert (pic.nbytes, pic.checks["sha256"]) == (ptt5.nbytes, ptt5.checks["sha256"])


def test_the_development_files(dev_corpus: Path) -> None:
    findings = corpora.verify(dev_corpus, corpora.load("dev"))
    assert {finding.kind for finding in findings} == {"sound"}
    assert corpora.identify(dev_corpus).name == "dev"


GOOD = {"name": "a", "nbytes": 3, "sha256": "0" * 64}
WHOLE = {
    **dict.fromkeys(("name", "title", "published", "licence", "seen", "seen_note"), "x"),
    "sources": [],
    "files": [GOOD],
}
BAD = [
    [],
    {**WHOLE, "files": []},
    {**WHOLE, "files": [GOOD, GOOD]},
    {**WHOLE, "files": [{**GOOD, "sha256": "0" * 63}]},
    {**WHOLE, "files": [{**GOOD, "sha256": "G" * 64}]},
    {**WHOLE, "files": [{**GOOD, "nbytes": 0}]},
    {**WHOLE, "files": [{**GOOD, "nbytes": "3"}]},
    {**WHOLE, "files": [{**GOOD, "name": "../a"}]},
    {key: value for key, value in WHOLE.items() if key != "sources"},
]


def test_manifests_are_checked() -> None:
    assert corpora.parse(json.dumps(WHOLE).encode(), "x").files[0].nbytes == 3
    for document in BAD:
        with pytest.raises(Corrupt, match=r"^here\.json: "):
            corpora.parse(json.dumps(document).encode(), "here.json")
    with pytest.raises(Corrupt):
        corpora.parse(b"\xff{", "x")
    with pytest.raises(ConfigError, match="calgary, canterbury"):
        corpora.load("calgari")


def corpus_of(files: dict[str, bytes]) -> corpora.Corpus:
    """Files with all digests, one with the weak ones, one with none, one optional."""
    entries = []
    for name, data in files.items():
        entry = {"name": name, "nbytes": len(data)}
        if name not in ("weak", "bare"):
            entry["sha256"] = hashlib.sha256(data).hexdigest()
        if name == "weak":
            entry |= {"crc32": f"{zlib.crc32(data):08x}", "adler32": f"{zlib.adler32(data):08x}"}
        if name == "spare":
            entry["optional"] = True
        entries.append(entry)
    return corpora.parse(json.dumps({**WHOLE, "files": entries, "ignore": ["README"]}).encode(), "x")


def test_verify_finds_what_is_wrong(tmp_path: Path) -> None:
    files = {name: name.encode() * 500 for name in ("strong", "weak", "bare", "lower", "spare")}
    corpus = corpus_of(files)

    def write(**changes: bytes | None) -> list[tuple[str, str]]:
        for path in tmp_path.iterdir():
            path.unlink()
        for name, data in {**files, **changes}.items():
            if data is not None:
                (tmp_path / name).write_bytes(data)
        return [(f.kind, f.name) for f in corpora.verify(tmp_path, corpus)]

    sound = [("size only" if name == "bare" else "sound", name) for name in files]
    assert write() == sound
    assert write(README=b"x") == sound
    assert write(lower=None, LOWER=files["lower"]) == sound
    assert write(spare=None) == sound[:-1]
    assert write(strong=None)[0] == ("missing", "strong")
    assert write(more=b"x") == [*sound, ("extra", "more")]
    for i, name in enumerate(files):
        kinds = [kind for kind, _ in write(**{name: files[name][1:]})]
        assert kinds[i] == "differs"
        assert kinds.count("differs") == 1
        # A flipped bit is seen where a digest is published.
        flipped = bytes([files[name][0] ^ 1]) + files[name][1:]
        assert (write(**{name: flipped})[i][0] == "differs") == (name != "bare")
    (tmp_path / "strong").unlink()
    (tmp_path / "strong").mkdir()
    assert corpora.verify(tmp_path, corpus)[0].kind == "differs"


def test_the_commands(tmp_path: Path) -> None:
    listed = run("list")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.decode().splitlines()[1:]] == sorted(TOTALS)
    assert "0ec3a75089bb5234" in run("list", "canterbury").stdout.decode()

    size = next(file.nbytes for file in corpora.load("canterbury").files if file.name == "xargs.1")
    (tmp_path / "xargs.1").write_bytes(b"x" * size)
    wrong = run("verify", tmp_path)
    assert wrong.returncode == 1
    lines = wrong.stdout.decode().splitlines()
    assert lines[-1] == "canterbury: 10 missing, 1 differs"
    assert any(line.startswith("xargs.1: differs (sha256 ") for line in lines)
    for arguments, message in (
        (["verify", tmp_path / "none"], "no such folder"),
        (["verify", tmp_path / "xargs.1"], "not a folder"),
        (["verify", tmp_path, "--corpus", "nix"], "no corpus is called 'nix'"),
        (["list", "nix"], "no corpus is called 'nix'"),
        (["generate", "--kind", "nix", "--nbytes", "1", "-o", "-"], "no kind of text is called 'nix'"),
        (["generate", "--kind", "log", "--nbytes", "1", "-o", tmp_path / "no" / "x"], "No such file"),
    ):
        result = run(*arguments)
        assert result.returncode == 1
        assert message in result.stderr.decode()
        assert len(result.stderr.splitlines()) == 1
    (tmp_path / "xargs.1").unlink()
    assert "none of the known corpora's files" in run("verify", tmp_path).stderr.decode()


def test_too_many_files_are_a_warning(dev_corpus: Path, tmp_path: Path) -> None:
    for path in dev_corpus.iterdir():
        (tmp_path / path.name).symlink_to(path.resolve())
    assert run("verify", "-q", tmp_path).returncode == 0
    (tmp_path / "more").touch()
    result = run("verify", "-q", tmp_path)
    assert result.returncode == 2
    assert result.stdout == b"more: extra (no file of this corpus)\ndev: 39 sound, 1 extra\n"


def test_the_generator_is_splitmix64() -> None:
    """The first values that the reference implementation gives for this seed."""
    rng = SplitMix64(1_234_567)
    assert [rng.next() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    rng = SplitMix64(1)
    assert {rng.below(3) for _ in range(100)} == {0, 1, 2}


# The first half of the SHA-256 of 100,000 bytes from seed 7: frozen.
GOLDEN = {
    "prose": "7c4aa6420630dc98266ac07528d58a4e",
    "json": "6a3344def656553f065effcd282ccce5",
    "csv": "6ddf687fc851a4e67c9b801868e66bf8",
    "log": "84e685b5aa4515a8f94898ada874efdf",
    "code": "687b80ea7cdbc2891b7632b495ae9c16",
    "random": "5fa36b882964d3748947cdcd51999046",
    "repeated": "2c19f0ae15d76e5f6b005c68c5fd475c",
}


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_changes(kind: str) -> None:
    text = generate(kind, 100_000, 7)
    assert hashlib.sha256(text).hexdigest()[:32] == GOLDEN[kind]
    assert generate(kind, 1001, 7) == text[:1001]
    assert generate(kind, 1001, 8) != text[:1001]
    assert generate(kind, 0, 7) == b""
    assert all(pieces(kind, 200_000, 7))
    if kind != "random":
        text.decode()


def test_text_is_the_same_in_another_process(tmp_path: Path) -> None:
    whole = generate("code", 70_000, 3)
    arguments = ["generate", "--kind", "code", "--nbytes", 70_000, "--seed", 3, "-o"]
    assert run(*arguments, "-").stdout == whole
    assert run(*arguments, tmp_path / "code").returncode == 0
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("code", whole)]
    assert run(*arguments, "/dev/stdout").stdout == whole
    # What is there stays unless -f says otherwise, and then until the text is complete.
    (tmp_path / "code").write_bytes(b"mine")
    refused = run(*arguments, tmp_path / "code")
    assert refused.returncode == 1
    assert refused.stderr.decode() == f"lmcodec: {tmp_path / 'code'}: exists already (-f overwrites it)\n"
    assert (tmp_path / "code").read_bytes() == b"mine"
    assert run(*arguments, tmp_path / "code", "-f").returncode == 0
    assert (tmp_path / "code").read_bytes() == whole


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_no_half_of_a_text(number: str, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-m", "lmcodec", "corpus", "generate", "--kind", "log", "--nbytes", "1G"]
    process = subprocess.Popen([*command, "-o", str(tmp_path / "log")], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == -getattr(signal, number)
    assert list(tmp_path.iterdir()) == []
