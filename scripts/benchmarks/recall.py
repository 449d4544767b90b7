#!/usr/bin/env python3
"""How fast does information cross blocks? Accuracy on a recall task, by architecture and updates.

A source of four parts holds one value in each part, at a random place among filler, and two
questions at random places anywhere: "A: which value is in part i?" and "B: ... in part j?". The
target lists the two values. The question and its answer mostly stand in different blocks, and the
decoder has a single layer, so somebody in the encoder has to carry the question to the values.

--scattered LENGTHS asks, as mixers.py does, for key-value pairs scattered over longer sources, and
compares pooling operators at eight tokens to a slot.
"""

from __future__ import annotations

import json
import logging
import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary

from fairseq_updown.cli.support import CommandParser, positive
from fairseq_updown.models.updown_transformer import UpdownTransformerModel
from fairseq_updown.terminal import progress

PARTS, LENGTH, BLOCK = 4, 32, 8
EOS, ASK_A, ASK_B, VALUE, FILLER, END = 2, 4, 8, 12, 20, 24  # first token of each kind
NUM_VALUES = FILLER - VALUE
BATCH, TEST = 32, 512  # examples of an update, and unseen ones

_POOL_2 = {"updown_pool_layers": "1", "updown_memory_size": LENGTH // 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"updown_block_size": LENGTH},
    "blockwise": {"updown_slots": 0},
    "slots": {},
    "slots and pool": _POOL_2,
    # What was pooled is one block: there all see each other.
    "pool": {**_POOL_2, "updown_slots": 0, "updown_pooled_block_size": LENGTH // 2},
}
# Eight tokens to a slot, or to a token of the pyramid: three rounds of the tournament.
_NARROW = {"updown_block_size": 16, "updown_slots": 2}
_POOL_8 = {"updown_pool_layers": "1", "updown_pool_rate": 8.0, "updown_memory_size": 8}
POOLING_VARIANTS: dict[str, dict[str, Any]] = {
    f"{operator}, {what}": {**_NARROW, **more, "updown_pooling": operator}
    for operator in ("tournament", "seeded")
    for what, more in (
        ("slots", {}),
        ("slots, not re-weighted", {"updown_no_reweight": True}),
        ("slots and pool", _POOL_8),
    )
}


def examples(generator: torch.Generator, bsz: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources `(bsz, LENGTH)` and targets `(bsz, 2)`."""
    size = LENGTH // PARTS
    source = torch.randint(FILLER, END, (bsz, PARTS, size), generator=generator)
    values = torch.randint(VALUE, FILLER, (bsz, PARTS), generator=generator)
    places = torch.randint(2, size, (bsz, PARTS), generator=generator)
    source = source.scatter(2, places.unsqueeze(2), values.unsqueeze(2)).flatten(1)
    asked = torch.randint(PARTS, (bsz, 2), generator=generator)
    part = torch.randint(PARTS, (bsz, 2), generator=generator)
    question = asked + torch.tensor([ASK_A, ASK_B])
    return source.scatter(1, part * size + torch.arange(2), question), values.gather(1, asked)


def scattered_examples(
    generator: torch.Generator, bsz: int, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources `(bsz, length)` and targets `(bsz, 2)`: key-value pairs, and questions far from them.

    The first half of a source holds one pair for each of PARTS keys, each a token of its own, at
    random places among filler; the last two tokens are the questions. So a question stands at least
    half the length, and up to all of it, away from its answer.
    """
    source = torch.randint(FILLER, END, (bsz, length), generator=generator)
    values = torch.randint(NUM_VALUES, (bsz, PARTS), generator=generator)
    places = torch.rand(bsz, length // 2, generator=generator).topk(PARTS).indices
    source = source.scatter(1, places, END + NUM_VALUES * torch.arange(PARTS) + values)
    asked = torch.randint(PARTS, (bsz, 2), generator=generator)
    source[:, -2:] = asked + torch.tensor([ASK_A, ASK_B])
    return source, VALUE + values.gather(1, asked)


class Task(NamedTuple):
    """One kind of example.

    Attributes:
        draw: makes so many examples.
        length: source tokens.
        bsz: examples of an update.
        test_bsz: examples tested at a time.
        end: the vocabulary's size.
    """

    draw: Callable[[torch.Generator, int], tuple[torch.Tensor, torch.Tensor]]
    length: int
    bsz: int
    test_bsz: int
    end: int


PLAIN = Task(examples, LENGTH, BATCH, TEST, END)


def scattered_tasks(lengths: Sequence[int]) -> list[Task]:
    """The scattered pairs at several lengths; longer ones in smaller batches, for the sake of time.

    Four times the length is half the batch.
    """
    tasks = []
    for length in lengths:
        bsz = max(1, round(BATCH * math.sqrt(min(lengths) / length)))
        draw = partial(scattered_examples, length=length)
        tasks.append(Task(draw, length, bsz, bsz, END + PARTS * NUM_VALUES))
    return tasks


def build(options: dict[str, Any], seed: int, tasks: Sequence[Task] = (PLAIN,)) -> Any:
    """A model of three encoder layers and one decoder layer, with options besides the common."""
    dictionary = Dictionary()
    for number in range(max(task.end for task in tasks) - len(dictionary)):
        dictionary.add_symbol(f"w{number}")
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=None)
    common = {
        "_name": "updown_transformer_tiny",
        "encoder_embed_dim": 32,
        "encoder_layers": 3,
        "decoder_layers": 1,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "share_all_embeddings": True,
        "dropout": 0.0,
        "updown_block_size": BLOCK,
        "updown_slots": 4,
        "updown_pool_rate": 2.0,
        "max_source_positions": max(1024, *(task.length for task in tasks)),
    }
    torch.manual_seed(seed)
    return UpdownTransformerModel.build_model(Namespace(**{**common, **options}), task)


def logits(model: Any, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    start = torch.full_like(target[:, :1], EOS)
    return model(source, None, torch.cat([start, target[:, :-1]], dim=1))[0]


def learn(
    options: dict[str, Any],
    updates: int,
    seed: int = 0,
    report: int = 200,
    tasks: Sequence[Task] = (PLAIN,),
    device: str = "cpu",
    label: str = "",
) -> Iterator[tuple[int, dict[int, float]]]:
    """Trains a model with these options on all tasks in turn, one in each update.

    Yields:
        after every `report` updates, and at the end, how many there were, and the accuracy on
        unseen examples by length.
    """
    model = build(options, seed, tasks).to(device)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed + 1)
    for update in progress(range(1, updates + 1), label, updates):
        model.train()
        optimizer.param_groups[0]["lr"] = 0.003 * min(1.0, update / 100)
        task = tasks[update % len(tasks)]
        source, target = (x.to(device) for x in task.draw(generator, task.bsz))
        optimizer.zero_grad()
        F.cross_entropy(logits(model, source, target).flatten(0, 1), target.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % report == 0 or update == updates:
            yield update, {task.length: accuracy(model, task, seed, device) for task in tasks}


def accuracy(model: Any, task: Task, seed: int, device: str) -> float:
    """The share of answers that are right, in about TEST unseen examples, to three digits."""
    generator = torch.Generator().manual_seed(-1 - seed)
    model.eval()
    shares = []
    for _ in range(max(1, TEST // task.test_bsz)):
        source, target = (x.to(device) for x in task.draw(generator, task.test_bsz))
        with torch.no_grad():
            right = logits(model, source, target).argmax(dim=-1) == target
        shares.append(float(right.float().mean()))
    return round(sum(shares) / len(shares), 3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("recall.py", __doc__)
    add = parser.add_argument
    add("--scattered", nargs="+", type=positive, metavar="LENGTH", help="scattered pairs instead")
    names = f"default: {', '.join(VARIANTS)}; with --scattered {'; '.join(POOLING_VARIANTS)}"
    known = [*VARIANTS, *POOLING_VARIANTS]
    add("--variants", nargs="+", choices=known, metavar="NAME", help=names)
    add("--updates", type=positive, default=1000, metavar="N")
    add("--report", type=positive, default=200, metavar="N", help="accuracy after so many updates")
    add("--seed", type=int, default=0)
    add("--autocast", action="store_true", help="train with --updown-autocast bfloat16-always")
    args = parser.parse_args(argv)
    variants = args.variants or list(POOLING_VARIANTS if args.scattered else VARIANTS)
    tasks = scattered_tasks(args.scattered) if args.scattered else [PLAIN]
    logging.disable(logging.INFO)
    torch.set_num_threads(1)  # the model is too small for more
    print(f"accuracy after updates, torch {torch.__version__}, seed {args.seed}")
    for variant in variants:
        options = {**VARIANTS, **POOLING_VARIANTS}[variant]
        if args.autocast:
            options = {**options, "updown_autocast": "bfloat16-always"}
        curve = learn(options, args.updates, args.seed, args.report, tasks, label=variant)
        found = {update: list(by_length.values()) for update, by_length in curve}
        print(f"{variant}: {json.dumps(found)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
