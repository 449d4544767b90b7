"""What may be asked of fairseq's search: checked before any work, for the search itself fails late,
or heeds nothing of it."""

import difflib
import math
from typing import Any, Dict, NamedTuple, Optional

from ..errors import UserError


class Number(NamedTuple):
    """A range of numbers.

    Attributes:
        least, most: both belong to it.
        whole: only whole numbers do.
        off: a value outside that belongs to it too.
    """

    least: float
    most: float = math.inf
    whole: bool = False
    off: Optional[float] = None

    def holds(self, value: Any) -> bool:
        kinds = (int,) if self.whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        return self.least <= value <= self.most or value == self.off

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        most = "" if self.most == math.inf else f" to {self.most:g}"
        off = "" if self.off is None else f", or {self.off:g} for none"
        return f"{kind} from {self.least:g}{most}{off}"


# None: true or false.
OPTIONS: Dict[str, Optional[Number]] = {
    "beam": Number(1, whole=True),
    "max_len_a": Number(0, 1e6),
    "max_len_b": Number(0, whole=True),
    "min_len": Number(0, whole=True),
    "lenpen": Number(-10, 10),  # length ** lenpen must not overflow
    "unkpen": Number(-1e6),  # inf: none
    "unnormalized": None,
    "temperature": Number(0.01, 100),
    "no_repeat_ngram_size": Number(0, whole=True),
    "match_source_len": None,
    "sampling": None,
    "sampling_topk": Number(1, whole=True, off=-1),
    "sampling_topp": Number(0.01, 1, off=-1),
    "diverse_beam_groups": Number(1, whole=True, off=-1),
    "diverse_beam_strength": Number(0, 1e6),
    "diversity_rate": Number(0, 1e6, off=-1),
}


def check_value(shown: str, name: str, value: Any) -> None:
    """Refuses what the search cannot take.

    Args:
        shown: what the user knows the option as.
        name: the option, of `OPTIONS`.

    Raises:
        UserError: naming it, its value, and what may be given.
    """
    allowed = OPTIONS[name]
    if allowed is None:
        if not isinstance(value, bool):
            raise UserError(f"{shown} {value!r}: give true or false")
    elif not allowed.holds(value):
        raise UserError(f"{shown} {value!r}: give {allowed}")


def check_options(flag: str, options: Dict[str, Any]) -> None:
    """Refuses search options that are unknown, out of range, or do not go together.

    Args:
        flag: which has them all.

    Raises:
        UserError: naming flag, option and value.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            near = difflib.get_close_matches(name.replace("-", "_"), OPTIONS, 1, 0.7)
            remedy = f'write "{near[0]}"' if near else f"there are {', '.join(OPTIONS)}"
            raise UserError(f'{flag}: no option "{name}" (its value: {value!r}): {remedy}')
        check_value(f'{flag} "{name}"', name, value)
    _check_lengths(flag, options)
    _check_strategy(flag, options)


def _check_lengths(flag: str, options: Dict[str, Any]) -> None:
    if options.get("max_len_a") or options.get("match_source_len"):
        return  # it depends on the source
    shortest, longest = options.get("min_len", 1), options.get("max_len_b", 200)
    if shortest > longest:
        raise UserError(
            f'{flag} "min_len" {shortest} is over "max_len_b" {longest} (default 200): make it '
            "smaller, or that larger"
        )


def _check_strategy(flag: str, options: Dict[str, Any]) -> None:
    groups = options.get("diverse_beam_groups", -1)
    chosen = {
        "sampling": options.get("sampling", False),
        "diverse_beam_groups": groups > 0,
        "match_source_len": options.get("match_source_len", False),
        "diversity_rate": options.get("diversity_rate", -1) > 0,
    }
    names = [f'"{name}"' for name, is_chosen in chosen.items() if is_chosen]
    if len(names) > 1:
        raise UserError(f"{flag} {' and '.join(names)}: give one of them")
    for name in ("sampling_topk", "sampling_topp"):
        if options.get(name, -1) != -1 and not chosen["sampling"]:
            raise UserError(f'{flag} "{name}" {options[name]} goes with "sampling": true')
    beam = options.get("beam", 5)
    if groups > 0 and beam % groups:
        raise UserError(
            f'{flag} "diverse_beam_groups" {groups}: give a number that divides "beam" {beam}'
        )
