"""Real English text that every Python installation carries.

Documents are excerpts of the language reference (the topics behind `help()`) and of Python's
licence; chat material are the docstrings of well-known standard modules. Nothing is stored in
the repository: the text is read when it is needed, in a fixed order.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import re
import sysconfig
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from echo_sglang.errors import WorkloadError

_WORD = re.compile(r"\S+\s*")
_TABLE_RULE = re.compile(r"[+|][-=+|]{2}|^\s*\|", re.MULTILINE)
CHAT_MODULES = (
    "argparse", "bisect", "calendar", "cmd", "codecs", "collections/__init__", "colorsys",
    "concurrent/futures/_base", "configparser", "contextlib", "copy", "csv", "datetime",
    "decimal", "difflib", "doctest", "email/message", "enum", "fileinput", "fractions", "ftplib",
    "functools", "gettext", "getopt", "glob", "graphlib", "hashlib", "heapq", "hmac",
    "http/client", "http/cookies", "imaplib", "inspect", "ipaddress", "json/__init__",
    "json/decoder", "json/encoder", "locale", "logging/__init__", "logging/handlers", "mailbox",
    "mimetypes", "optparse", "os", "pathlib", "pickle", "pickletools", "pprint", "random",
    "sched", "secrets", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver",
    "sqlite3/__init__", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "timeit", "tokenize", "traceback", "turtle", "typing", "unittest/__init__",
    "unittest/case", "urllib/parse", "urllib/request", "uuid", "warnings", "weakref", "zipfile",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """A piece of text and what it is about. source: where it was read, such as "help: with"."""

    source: str
    title: str
    text: str

    @property
    def num_words(self) -> int:
        """Words as separated by white space."""
        return len(self.text.split())


@functools.cache
def read_documents(*, num_words: int) -> tuple[Excerpt, ...]:
    """All non-overlapping excerpts of exactly `num_words` words, in a fixed order.

    Raises WorkloadError if this Python installation carries no such text.
    """
    excerpts: list[Excerpt] = []
    for source, title, text in _long_texts():
        words = _WORD.findall(_prose(text))
        for part, start in enumerate(range(0, len(words) - num_words + 1, num_words), start=1):
            body = "".join(words[start : start + num_words]).rstrip()
            excerpts.append(Excerpt(source=f"{source}, part {part}", title=title, text=body))
    if not excerpts:
        raise WorkloadError(
            f"no text of {num_words} words in this Python installation; "
            "install its standard library whole (pydoc_data) or ask for shorter documents"
        )
    return tuple(excerpts)


@functools.cache
def read_passages(*, min_words: int) -> tuple[Excerpt, ...]:
    """Docstrings of at least `min_words` words from the modules of CHAT_MODULES.

    Raises WorkloadError if none is found.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    passages: list[Excerpt] = []
    for name in CHAT_MODULES:
        path = folder / f"{name}.py"
        if path.is_file():
            passages += _docstrings(name.removesuffix("/__init__").replace("/", "."), path)
    passages = [passage for passage in passages if passage.num_words >= min_words]
    if not passages:
        raise WorkloadError(
            f"no docstring of {min_words} words under {folder.name}; "
            "use a Python whose standard library is installed as source"
        )
    return tuple(passages)


def first_words(text: str, num_words: int) -> str:
    """The first `num_words` words of `text`, its line breaks and indentation turned to spaces."""
    return " ".join(text.split()[:num_words])


def _long_texts() -> list[tuple[str, str, str]]:
    texts: list[tuple[str, str, str]] = []
    topics: dict[str, str] = {}
    with contextlib.suppress(ImportError):
        topics = import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        title = topics[name].strip().splitlines()[0]
        texts.append((f"help: {name}", title, topics[name]))
    licence = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    if licence.is_file():
        text = licence.read_text(encoding="utf-8")
        texts.append(("LICENSE.txt", "The licence of Python", text))
    return texts


def _prose(text: str) -> str:
    """Leave out tables and rulers, which are characters rather than words."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    kept = [paragraph for paragraph in paragraphs if not _TABLE_RULE.search(paragraph)]
    return "\n\n".join(kept)


def _docstrings(module: str, path: Path) -> list[Excerpt]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[Excerpt] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            title = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
            if text:
                found.append(Excerpt(source=f"docstring: {title}", title=title, text=text))
    return found
