"""Everything a person may name as data gives its documents, or one sentence about what is wrong."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from homespun.data import formats
from homespun.data.conversation import render
from homespun.data.formats import Meter
from homespun.data.sources import File, documents, resolve, spooled
from homespun.errors import DataError, MissingExtraError

TEXT = "One paragraph.\n\nAnother, with 漢字.\n"
ROWS = [{"text": "line\u2028one"}, {"prompt": "Why?", "completion": "So."}, {"text": "last\nline"}]


def texts(*names: str | Path | File) -> list[str]:
    return ["".join(part for part in document if isinstance(part, str)) for document in documents(names)]


def json_lines() -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize("suffix", [".txt", ".md", ".py", ".log", ""])
def test_a_small_file_of_text_is_one_exact_document(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_text(TEXT, encoding="utf-8")
    assert texts(tmp_path / f"a{suffix}") == [TEXT]


def test_a_long_file_becomes_documents_whose_concatenation_is_the_file(shared: Path) -> None:
    found = texts(shared / "tinyshakespeare.txt")
    assert "".join(found) == (shared / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert len(found) > 100 and all(4_000 < len(text) < 4 * 8192 for text in found[:-1])


def test_a_dump_with_end_of_text_lines_has_one_document_per_story(tmp_path: Path) -> None:
    (tmp_path / "dump.txt").write_text(
        "One.\n\nStill one.\n<|endoftext|>\n\nTwo <|endoftext|> inline.\n<|endoftext|>\n"
    )
    assert texts(tmp_path / "dump.txt") == ["One.\n\nStill one.", "Two <|endoftext|> inline."]
    (tmp_path / "about.md").write_text("The token\n<|endoftext|>\nends a document.\n")
    assert len(texts(tmp_path / "about.md")) == 1


def test_rows_may_be_text_pairs_or_chat_and_hold_any_line_separator(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json_lines() + "\n  \n", encoding="utf-8")
    found = list(documents([tmp_path / "rows.jsonl"]))
    assert found == [render(row) for row in ROWS]


def test_windows_json_lines_and_plain_strings_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n"plain"\r\n{"text": ""}')
    assert texts(tmp_path / "rows.json") == ["a\r\nb", "plain"]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "half \\ud83d here"}\n{"text": "whole \\ud83d\\ude00"}\n')
    assert texts(tmp_path / "rows.jsonl") == ["half \ufffd here", "whole 😀"]


@pytest.mark.parametrize(
    "row, words",
    [
        ('{"text": "cut', "line 3 is no JSON"),
        ("[1, 2]", "line 3 is no object"),
        ("[", "line 3 begins a JSON value of many lines"),
        ('{"txet": "a"}', "line 3: A row has the keys txet"),
        ('{"text": 5}', "line 3: .*text.*5"),
        ("[" * 100_000, "line 3 is no JSON"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(row: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "a"}}\n\n{row}\n{{"text": "b"}}\n')
    with pytest.raises(DataError, match=f"rows.jsonl, {words}"):
        texts(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("delimiter, suffix", [(",", ".csv"), (";", ".csv"), ("\t", ".tsv")])
def test_tables_give_their_text_column(delimiter: str, suffix: str, tmp_path: Path) -> None:
    rows = [["id", "text"], ["1", f'"quoted{delimiter} with ""marks""\nand two lines"'], ["2", "plain"], ["3", ""]]
    (tmp_path / f"t{suffix}").write_text("\r\n".join(delimiter.join(row) for row in rows), newline="")
    assert texts(tmp_path / f"t{suffix}") == [f'quoted{delimiter} with "marks"\nand two lines', "plain"]


def test_a_table_with_a_large_cell_is_read_and_one_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\n" + "word " * 100_000 + "\n")
    assert len(texts(tmp_path / "t.csv")[0]) == 500_000
    (tmp_path / "n.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"n.csv, row at line 2: A row has the keys a, b"):
        texts(tmp_path / "n.csv")


def compress_zst(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": compress_zst,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_are_read_in_several_frames_too(suffix: str, tmp_path: Path) -> None:
    pack = PACKERS[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(TEXT.encode()) + pack(TEXT.encode()))
    assert texts(tmp_path / f"a.txt{suffix}") == [TEXT + TEXT]
    (tmp_path / f"rows.jsonl{suffix}").write_bytes(pack(json_lines().encode()))
    assert len(texts(tmp_path / f"rows.jsonl{suffix}")) == 3


@pytest.mark.parametrize("suffix", PACKERS)
def test_damaged_archives_are_named(suffix: str, tmp_path: Path) -> None:
    data = PACKERS[suffix](os.urandom(50_000).hex().encode())
    (tmp_path / f"cut.txt{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=f"cut.txt{suffix} is damaged or cut short"):
        texts(tmp_path / f"cut.txt{suffix}")
    (tmp_path / f"no.txt{suffix}").write_bytes(b"this is no archive at all" * 10)
    with pytest.raises(DataError, match=f"no.txt{suffix}"):
        texts(tmp_path / f"no.txt{suffix}")


@pytest.mark.parametrize(
    "module, suffix, words", [("zstandard", ".txt.zst", ".zst files"), ("pyarrow", ".parquet", ".parquet files")]
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, suffix: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / f"a{suffix}").write_bytes(b"any")
    with pytest.raises(MissingExtraError, match=rf"{words} needs the package '{module}'.*homespun\[data\]"):
        texts(tmp_path / f"a{suffix}")


def test_parquet_tables_give_their_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"id": list(range(600)), "text": [f"text {n}" for n in range(600)]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert texts(tmp_path / "t.parquet") == [f"text {n}" for n in range(600)]
    (tmp_path / "n.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"n\.parquet is no Parquet file"):
        texts(tmp_path / "n.parquet")


def test_folders_are_read_whole_sorted_and_without_hidden_or_unknown_files(tmp_path: Path) -> None:
    for name in ["b.txt", "a.md", "deep/er/c.txt.gz", ".hidden.txt", ".git/d.txt", "picture.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(b"zipped") if name.endswith(".gz") else name.encode())
    assert texts(tmp_path) == ["a.md", "b.txt", "zipped"]


def test_globs_and_several_names_give_each_file_once(tmp_path: Path) -> None:
    for name in ["a.txt", "b.txt", "c.md"]:
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert texts(tmp_path / "c.md", tmp_path / "*.txt", tmp_path / "b.txt") == ["c.md", "a.txt", "b.txt"]
    (tmp_path / "[odd].txt").write_text("odd")
    assert texts(tmp_path / "[odd].txt") == ["odd"]


@pytest.mark.parametrize(
    "valid", ["valid.txt", "val.txt", "validation.jsonl", "dev.txt.gz", "valid-00000-of-00001.txt"]
)
def test_train_and_valid_files_of_a_folder_are_the_split(valid: str, tmp_path: Path) -> None:
    for name in ["train.txt", valid, "test.txt", "readme.md"]:
        (tmp_path / name).write_text("x")
    said: list[str] = []
    found = resolve([tmp_path], said.append)
    assert {(Path(source.name).name, source.side) for source in found} == {("train.txt", "train"), (valid, "valid")}
    assert "readme.md, test.txt" in said[0]
    named = resolve([tmp_path / "train.txt", tmp_path / valid, tmp_path / "readme.md"])
    assert [source.side for source in named] == ["train", "valid", None]


def test_without_both_sides_names_mean_nothing(tmp_path: Path) -> None:
    for name in ["train.txt", "other.txt", "training_notes.txt", "deep/valid.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [source.side for source in resolve([tmp_path])] == [None] * 4


def test_the_library_of_this_interpreter_is_a_corpus() -> None:
    found = resolve(["python:"])
    names = [source.name for source in found]
    assert len(names) > 300 and names == sorted(names)
    assert "python:json/decoder.py" in names
    assert not any("site-packages" in name or "/test/" in name for name in names)
    for source in found:  # every file of it can be read
        assert isinstance(source, File)
        source.path.read_bytes().decode("utf-8")


def test_stories_are_told_one_per_document() -> None:
    assert len(set(texts("stories:20"))) == 20
    assert texts("stories:5") == texts("stories:20")[:5]
    assert resolve(["stories:1k"])[0].name == "stories:1000"


def test_standard_input_and_pipes_can_be_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("from a pipe"))
    writer.start()
    with spooled(["-", pipe]) as places:
        assert texts(*places) == texts(*places) == [TEXT, "from a pipe"]
        assert [place.name for place in places] == ["standard input", str(pipe)]
    writer.join()
    assert not any(place.path.exists() for place in places)


def test_empty_files_give_nothing(tmp_path: Path) -> None:
    for name in ["a.txt", "b.jsonl", "c.csv", "d.py", "e.txt.gz"]:
        (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    (tmp_path / "f.txt").write_text(" \n\n ")
    assert texts(tmp_path) == []


@pytest.mark.parametrize(
    "name, words",
    [
        ("shakespear.txt", "shakespear.txt' does not exist. Did you mean '.*shakespeare.txt'"),
        ("fodler/x.txt", "does not exist. Did you mean '.*folder'"),
        ("*.nothing", "does not exist"),
    ],
)
def test_a_missing_name_brings_the_nearest(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "shakespeare.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=words):
        resolve([tmp_path / name])


@pytest.mark.parametrize("name", ["hf:wikitext", "sqlite:a.db?select", "s3://bucket/key", "https://example.org/a.txt"])
def test_unknown_schemes_are_errors_that_list_the_known_ones(name: str) -> None:
    with pytest.raises(DataError, match=r"no known source.*stories:N, python:"):
        resolve([name])


@pytest.mark.parametrize("name", ["stories:", "stories:many", "stories:0", "stories:1.5"])
def test_stories_need_a_number(name: str) -> None:
    with pytest.raises(DataError, match="how many stories"):
        resolve([name])


def test_folders_without_text_no_names_and_devices_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no text: .png. Known: .txt"):
        resolve([tmp_path])
    with pytest.raises(DataError, match="No source"):
        resolve([])
    with pytest.raises(DataError, match="neither a file nor a folder"):
        resolve(["/dev/null"])


def test_the_meter_counts_the_bytes_on_disk(tmp_path: Path) -> None:
    data = gzip.compress(os.urandom(300_000).hex().encode())
    (tmp_path / "a.txt.gz").write_bytes(data)
    meter = Meter()
    list(documents([tmp_path / "a.txt.gz"], meter=meter))
    assert meter.done == len(data)


@pytest.mark.skipif(not hasattr(os, "symlink") or sys.platform == "win32", reason="links need rights there")
def test_a_link_to_nothing_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "itself.txt").symlink_to("itself.txt")
    (tmp_path / "gone.txt").symlink_to("absent.txt")
    for name in ("itself.txt", "gone.txt", "*.txt"):
        with pytest.raises(DataError, match="does not exist"):
            resolve([str(tmp_path / name)])
    (tmp_path / "good.txt").write_text("text")
    assert len(resolve([str(tmp_path / "*.txt")])) == 1


def test_a_giant_line_need_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    with gzip.open(tmp_path / "line.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(20):
            file.write(b"word " * 200_000)
    tracemalloc.start()
    characters = sum(len(part) for document in documents([tmp_path / "line.txt.gz"]) for part in document)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == 20_000_000 and peak < 12 * formats.BLOCK
