"""Real text that every machine with Python has: the standard library's sources and its language reference.

Nothing is downloaded and nothing is copied into the repository. A fixed list of modules and reference topics is held
out: the perplexity of the testbed is measured on it and no training step ever sees it.
"""

import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

HELD_OUT_MODULES = ("argparse", "dataclasses", "difflib", "fractions", "heapq", "shlex", "statistics", "textwrap")
HELD_OUT_TOPICS = ("debugger", "formatstrings", "strings", "typesmapping")

# Packages beside the top-level modules; tests, codec tables and the bundled editor would only repeat themselves.
PACKAGES = (
    *("asyncio", "collections", "concurrent", "ctypes", "curses", "dbm", "email", "html", "http", "importlib", "json"),
    *("logging", "multiprocessing", "re", "sqlite3", "tkinter", "tomllib", "unittest", "urllib", "venv", "wsgiref"),
    *("xml", "xmlrpc", "zoneinfo"),
)
PROSE_REPEATS = 3  # the reference is 6 % of the bytes; repeating it keeps English from drowning in Python

CITIES = (
    "accra amman athens bangkok beirut berlin bogota brest cairo caracas chennai dakar delhi denver dhaka dublin "
    "geneva genoa hanoi harare havana helsinki jakarta kabul kiev kyoto lagos lima lisbon london lusaka madrid "
    "malaga manila minsk monaco moscow mumbai munich nairobi naples odessa osaka oslo paris perth prague quito "
    "rabat riga rome santiago seoul sofia sydney taipei tallinn tehran tokyo tunis turin vienna warsaw zagreb"
)
KEYS = tuple("@" + city for city in CITIES.split())
VALUES = tuple(f"#{number:02d}" for number in range(64))
BOS, PAD, ASK = "<bos>", "<pad>", "<ask>"


def training_text() -> list[str]:
    """Every document to train on, one string each: standard library modules and reference topics, none held out.

    Raises:
        FileNotFoundError: this Python was installed without its sources.
    """
    prose = [text for name, text in _topics().items() if name not in HELD_OUT_TOPICS]
    return [_read(path) for path in _sources() if path.stem not in HELD_OUT_MODULES] + PROSE_REPEATS * prose


def held_out_text() -> str:
    """The perplexity text: held-out modules and topics in turn, joined by blank lines (about 380 KB).

    Raises:
        FileNotFoundError: this Python was installed without its sources.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules = [_read(library / f"{name}.py") for name in HELD_OUT_MODULES if (library / f"{name}.py").is_file()]
    topics = [_topics()[name] for name in HELD_OUT_TOPICS if name in _topics()]
    if not modules or not topics:
        raise FileNotFoundError(_no_sources(library))
    return "\n\n".join(modules + topics)


def train_tokenizer(documents: list[str], vocab_size: int = 1152) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on `documents` and add the 64 keys, 64 values, `<bos>`, `<pad>` and `<ask>`.

    `vocab_size` counts everything. A key or value is one token only where the task puts it: text is encoded with
    `encode_text`, which splits a chance `#12` in a comment like any other text.
    """
    special = [BOS, PAD, ASK, *KEYS, *VALUES]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        pad_token=PAD,
        additional_special_tokens=[ASK, *KEYS, *VALUES],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of plain text, free of `<bos>`, keys and values even where the text spells one."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _sources() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in library.glob("*.py") if not path.name.startswith("_sysconfigdata"))
    for package in PACKAGES:
        paths += sorted(path for path in (library / package).rglob("*.py") if "test" not in path.parts)
    if len(paths) < 100:
        raise FileNotFoundError(_no_sources(library))
    return paths


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(_no_sources(Path(sysconfig.get_path("stdlib")))) from error
    return topics


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _no_sources(library: Path) -> str:
    return (
        f"the Python standard library's sources or pydoc_data.topics are missing under {library}; "
        "use a Python that was installed with them (python.org, pyenv, conda, or Debian's libpython3-stdlib)"
    )
