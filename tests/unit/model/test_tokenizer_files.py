"""A tokenizer that cannot be read says which package it takes, or which file is wrong, in one line."""

import base64
import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import raymix, write_llama, write_run
from workers.config.model import ModelConfig
from workers.model.tokenizer import explain_missing_package, load_tokenizer

HAS = {name: importlib.util.find_spec(name) is not None for name in ("sentencepiece", "tiktoken", "mistral_common")}


def sentencepiece_model(pieces: str = "abcdefgh") -> bytes:
    """The beginning of SentencePiece's protobuf: pieces, each a text (1), a score (2) and a type (3)."""

    def piece(text: str, score: float, kind: int) -> bytes:
        content = text.encode()
        body = b"\x0a" + bytes([len(content)]) + content + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        return b"\x0a" + bytes([len(body)]) + body

    special = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3)
    return special + b"".join(piece(letter, -index, 1) for index, letter in enumerate("\u2581" + pieces))


TIKTOKEN = b"".join(base64.b64encode(bytes([i])) + f" {i}\n".encode() for i in range(256))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder)
    for file in folder.glob("*token*"):
        file.unlink()
    return folder


@pytest.fixture
def without(base: Path, tmp_path: Path) -> Callable[..., ModelConfig]:
    """The model with these files for a tokenizer, `tokenizer_class` among them."""

    def make(files: dict[str, bytes], tokenizer_class: str | None = None) -> ModelConfig:
        for file in base.iterdir():
            (tmp_path / file.name).symlink_to(file)
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        if tokenizer_class:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
        return ModelConfig(path=str(tmp_path))

    return make


@pytest.mark.skipif(HAS["sentencepiece"], reason="sentencepiece is installed")
@pytest.mark.parametrize(
    ("name", "tokenizer_class"),
    [
        ("tokenizer.model", None),
        ("tokenizer.model", "LlamaTokenizer"),
        ("tokenizer.model", "GemmaTokenizer"),
        ("spiece.model", "T5Tokenizer"),
        ("spiece.model", "SiglipTokenizer"),
        ("sentencepiece.bpe.model", "XGLMTokenizer"),
    ],
)
def test_a_sentencepiece_model_alone_names_its_package(
    without: Callable[..., ModelConfig], name: str, tokenizer_class: str | None
) -> None:
    config = without({name: sentencepiece_model()}, tokenizer_class)
    with pytest.raises(ValueError, match=r"^model\.path: ") as error:
        load_tokenizer(config)
    told = str(error.value)
    assert f"{name} is a SentencePiece model and there is no tokenizer.json" in told and "\n" not in told
    assert "`pip install sentencepiece`" in told and "tiktoken" not in told


@pytest.mark.skipif(HAS["tiktoken"], reason="tiktoken is installed")
def test_a_tiktoken_vocabulary_names_its_package(without: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.model is a tiktoken vocabulary .* `pip install tiktoken`"):
        load_tokenizer(without({"tokenizer.model": TIKTOKEN}))


@pytest.mark.skipif(HAS["mistral_common"], reason="mistral-common is installed")
def test_a_tekken_file_names_its_package(without: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ValueError, match=r"tekken\.json is a tokenizer of .*`pip install mistral-common`"):
        load_tokenizer(without({"tekken.json": b'{"config": {}, "vocab": []}'}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, r"tokenizer\.model is a Git LFS pointer to the tokenizer; run git lfs pull"),
        (b"<html><body>404", r"is neither a SentencePiece model nor a tiktoken vocabulary \(it has 15 bytes"),
        (b"", r"is neither a SentencePiece model nor a tiktoken vocabulary \(it has 0 bytes"),
        (b"PK\x03\x04 zipped", "is neither a SentencePiece model nor"),
    ],
)
def test_a_file_of_another_kind_is_told(without: Callable[..., ModelConfig], content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_tokenizer(without({"tokenizer.model": content}))


def test_a_class_that_takes_a_package_of_its_own(without: Callable[..., ModelConfig]) -> None:
    if importlib.util.find_spec("fugashi"):
        pytest.skip("fugashi is installed")
    config = without({"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"})
    settings = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
    (Path(config.path) / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"needs the package fugashi.* run `pip install fugashi`"):
        load_tokenizer(config)


def test_no_tokenizer_at_all_and_a_broken_one(without: Callable[..., ModelConfig], tmp_path: Path) -> None:
    config = without({})
    with pytest.raises(ValueError, match=r"it has no tokenizer\.json and no other tokenizer; copy the"):
        load_tokenizer(config)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not JSON"):
        load_tokenizer(config)


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("SentencePieceExtractor requires the SentencePiece library but it was not found", "sentencepiece"),
        ("`tiktoken` is required to read a `tiktoken` file.", "tiktoken"),
        ("MistralConverter requires the mistral-common library", "mistral-common"),
        ("You need to install sudachipy to use SudachiTokenizer.", "sudachipy"),
        ("No module named 'jieba'", "jieba"),
    ],
)
def test_a_package_that_transformers_names_is_named(message: str, package: str) -> None:
    said = explain_missing_package(None, ImportError(message))
    assert said is not None and f"`pip install {package}`" in said
    assert explain_missing_package(None, ValueError("something else")) is None


@pytest.mark.skipif(HAS["sentencepiece"], reason="sentencepiece is installed")
def test_check_says_it_in_one_line(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    for tokenizer in (tmp_path / "base").glob("*token*"):
        tokenizer.unlink()
    (tmp_path / "base" / "tokenizer.model").write_bytes(sentencepiece_model())
    done = raymix("check", file)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"raymix: model.path: {tmp_path / 'base'}: tokenizer.model is a SentencePiece model")
