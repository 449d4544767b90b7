"""Text to the symbols of a dictionary and back, by whatever it was encoded with."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from fairseq.data import encoders
from fairseq.registry import REGISTRIES
from omegaconf import DictConfig, OmegaConf

from ..data.bpe import ForgivingGPT2, build_bpe, name_of
from ..errors import UserError
from .loading import load_sentencepiece
from .windows import SPACE

_EXAMPLE = '{"gpt2_encoder_json": "FILE", "gpt2_vocab_bpe": "FILE"}'


class Pieces:
    """One of fairseq's `--bpe`.

    Args:
        bpe: with `encode` and `decode`, from string to string.
    """

    def __init__(self, bpe: Any):
        self.bpe = bpe

    def encode(self, text: str) -> list[str]:
        """The symbols of a text; runs of white space count as one space."""
        return self.bpe.encode(" ".join(text.split())).split()

    def decode(self, symbols: Sequence[str]) -> str:
        return self.bpe.decode(" ".join(symbols)).strip()

    def spelled(self, symbols: Sequence[str]) -> list[str]:
        """What each symbol stands for, SPACE for the space before a word."""
        return [
            (SPACE if self._begins_word(symbol, before) else "") + self.bpe.decode(symbol).strip()
            for before, symbol in zip(["", *symbols], symbols)
        ]

    def _begins_word(self, symbol: str, before: str) -> bool:
        mark = getattr(self.bpe, "bpe_symbol", None)  # at the end of all but a word's last symbol
        if mark is not None:
            return not before.endswith(mark.strip())
        begins = getattr(self.bpe, "is_beginning_of_word", None)
        return bool(begins(symbol)) if begins else self.bpe.decode(symbol).startswith(" ")

    def spans(self, text: str, count: int) -> list[tuple[int, int]]:
        """Where in the text each of its first symbols stands: `(begin, end)`, rising, without
        overlap."""
        by_bytes = isinstance(self.bpe, ForgivingGPT2)
        places = [
            index
            for index, character in enumerate(text)
            if not character.isspace()
            for _ in range(len(character.encode()) if by_bytes else 1)
        ]
        spans, cursor, end = [], 0, 0
        for symbol in self.encode(text)[:count]:
            covered = places[cursor : cursor + self._size(symbol)]
            cursor += len(covered)
            begin = max(end, covered[0]) if covered else end
            end = max(begin, covered[-1] + 1) if covered else begin
            spans.append((begin, end))
        return spans

    def _size(self, symbol: str) -> int:
        """Bytes of GPT-2, else characters, without space."""
        if isinstance(self.bpe, ForgivingGPT2) and self.bpe.is_piece(symbol):
            spelling = self.bpe.spellings[int(symbol)]
            return len(spelling) - spelling.count("\u0120")  # its sign for a space
        return len(self.bpe.decode(symbol).strip())


class SentencePieces(Pieces):
    """A sentencepiece model, whose pieces spell themselves."""

    def __init__(self, model: sentencepiece.SentencePieceProcessor):
        self.model = model

    def encode(self, text: str) -> list[str]:
        pieces = self.model.encode(" ".join(text.split()), out_type=str)
        return list(map(sys.intern, pieces))  # of many documents, each piece once

    def decode(self, symbols: Sequence[str]) -> str:
        return "".join(symbols).replace(SPACE, " ").strip()

    def spelled(self, symbols: Sequence[str]) -> list[str]:
        return list(symbols)

    def spans(self, text: str, count: int) -> list[tuple[int, int]]:
        begins: list[int] = []  # in the text, of each character of words joined by single spaces
        ends: list[int] = []
        cursor = 0
        for word in text.split():
            start = text.index(word, cursor)
            if begins:
                begins.append(cursor)
                ends.append(start)
            cursor = start + len(word)
            begins.extend(range(start, cursor))
            ends.extend(range(start + 1, cursor + 1))
        begins.append(cursor)
        try:
            found: Any = self.model.encode(" ".join(text.split()), return_type="offset_mapping")
        except (TypeError, ValueError) as error:
            raise UserError(
                f"sentencepiece {sentencepiece.__version__} does not tell where in a text its "
                "pieces stand: install 0.2.3 or newer"
            ) from error
        spans = []
        end = 0
        for first, after in found["offsets"][:count]:
            begin = max(end, begins[first])
            end = max(begin, ends[after - 1]) if after > first else begin
            spans.append((begin, end))
        return spans


def load_pieces(
    task: Any,
    stored: Any,
    bpe: str | None,
    bpe_args: Mapping[str, Any] | str | None,
    sentencepiece_model: str | Path | None,
) -> Pieces:
    """What the text of a checkpoint was encoded with.

    Args:
        stored: the options of `--bpe` in the checkpoint.
        bpe, bpe_args: what the user says of them, the latter also as JSON.
        sentencepiece_model: goes before the checkpoint's; without any, the one in its data.

    Raises:
        UserError: it cannot be loaded, or is another one.
    """
    given = _parse(bpe_args)
    options: Any = OmegaConf.to_container(stored) if isinstance(stored, DictConfig) else {}
    name = bpe or (None if sentencepiece_model else name_of(stored))
    if name != name_of(stored):
        options = {}
    if name is None:
        if given:
            raise UserError(f"--bpe-args {bpe_args}: the checkpoint names no BPE; give --bpe too")
        return SentencePieces(load_sentencepiece(sentencepiece_model, task))
    if name not in encoders.BPE_REGISTRY:
        raise UserError(f"--bpe {name}: choose {', '.join(encoders.BPE_REGISTRY)}")
    options = {**options, **given, "_name": name}
    if name == "sentencepiece":
        path = sentencepiece_model or options.get("sentencepiece_model")
        return SentencePieces(load_sentencepiece(path, task))
    return Pieces(build_bpe(_complete(name, options)))


def _parse(bpe_args: Mapping[str, Any] | str | None) -> dict[str, Any]:
    if not isinstance(bpe_args, str):
        return dict(bpe_args or {})
    try:
        found = json.loads(bpe_args)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"--bpe-args {bpe_args!r} is no JSON object; write it like {_EXAMPLE}")
    return found


def _complete(name: str, options: dict[str, Any]) -> Namespace:
    """With fairseq's defaults, but for those that it would fetch from the net."""
    config = REGISTRIES["bpe"]["dataclass_registry"].get(name)
    known = vars(config()) if config else {}
    names = sorted(set(known) - {"_name"})
    for unknown in sorted(set(options) - set(names) - {"_name"}):
        raise UserError(f"--bpe-args {unknown}: {name} has {', '.join(names) or 'no options'}")
    complete = {**known, **options}
    for option, value in complete.items():
        if "://" in str(value):
            raise UserError(
                f"--bpe {name}: {option} is {value}, and nothing is fetched from the net: give a "
                f'file, --bpe-args \'{{"{option}": "FILE"}}\''
            )
    return Namespace(**{**complete, "bpe": name})
