"""The summarization data set: truncation that is exact and counted, whole references, buckets."""

from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
import torch
from fairseq.data import BaseWrapperDataset, LanguagePairDataset, data_utils
from torch import Tensor


class TruncationCount(NamedTuple):
    """What a truncation left out.

    Attributes:
        samples: how many there are.
        cut: how many of them were longer than the limit.
        tokens: of all samples, before the cut.
        tokens_cut: how many of those are gone.
        longest: the longest sample, in tokens, before the cut.
    """

    samples: int
    cut: int
    tokens: int
    tokens_cut: int
    longest: int

    @classmethod
    def of(cls, sizes: Any, limit: int) -> "TruncationCount":
        """Counts samples of these sizes, each in tokens with its end of sentence."""
        sizes = np.asarray(sizes, dtype=np.int64)
        over = np.maximum(sizes - limit, 0)
        longest = int(sizes.max(initial=0))
        return cls(len(sizes), int((over > 0).sum()), int(sizes.sum()), int(over.sum()), longest)


def truncate(tokens: Tensor, limit: int) -> Tensor:
    """Keeps the first `limit - 1` tokens of `(length,)` and the last one, the end of sentence."""
    return tokens if len(tokens) <= limit else torch.cat([tokens[: limit - 1], tokens[-1:]])


class TruncatedDataset(BaseWrapperDataset):
    """Token tensors of at most `limit` tokens; a shorter sample stays as it is.

    fairseq's own truncation counts one token too many for every sample that was not cut.
    """

    def __init__(self, dataset: Any, limit: int):
        super().__init__(dataset)
        self.limit = limit
        self._sizes = np.minimum(np.asarray(dataset.sizes), limit)

    def __getitem__(self, index: int) -> Tensor:
        return truncate(self.dataset[index], self.limit)

    @property
    def sizes(self) -> Any:
        return self._sizes

    def size(self, index: int) -> int:
        return int(self._sizes[index])

    def num_tokens(self, index: int) -> int:
        return int(self._sizes[index])


def bucket_sizes(sizes: Any, num_buckets: int) -> Any:
    """Rounds sizes up to the nearest of `num_buckets` quantiles of them; `(samples,)` long."""
    sizes = np.asarray(sizes, dtype=np.int64)
    shares = np.linspace(0, 100, num_buckets + 1)[1:]
    buckets = np.unique(np.percentile(sizes, shares, method="lower"))
    return buckets[np.searchsorted(buckets, sizes)]


class SummarizationDataset(LanguagePairDataset):
    """Documents and summaries; where the summaries were cut, batches also have the whole ones.

    Args:
        references: the targets before truncation, or None where nothing was cut.
        num_buckets: pad to this many different lengths on either side; 0: to the longest in the
            batch. (fairseq's own buckets do not run with numpy 2.)
        others: see :class:`LanguagePairDataset`.
    """

    def __init__(
        self, *args: Any, references: Optional[Any] = None, num_buckets: int = 0, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.references = references
        self.bucketed = num_buckets > 0 and len(self) > 0
        if self.bucketed:
            self.src_sizes: Any = bucket_sizes(self.src.sizes, num_buckets)
            if self.tgt is not None:
                self.tgt_sizes: Any = bucket_sizes(self.tgt.sizes, num_buckets)

    def filter_indices_by_size(self, indices: Any, max_sizes: Any) -> Any:
        """As the parent's, by the sizes themselves: no bucket makes a sample too long."""
        if not self.bucketed:
            return super().filter_indices_by_size(indices, max_sizes)
        targets = None if self.tgt is None else np.asarray(self.tgt.sizes)
        return data_utils.filter_paired_dataset_indices_by_size(
            np.asarray(self.src.sizes), targets, indices, max_sizes
        )

    def collater(self, samples: List[Dict[str, Any]], pad_to_length: Any = None) -> Dict[str, Any]:
        """As the parent's, with the whole targets one after the other, `"reference"`
        `(sum of lengths,)` long, or None, and `"reference_lengths"` `(bsz,)` long. Not each as a
        tensor: a worker sends one by a file of its own, of which a process has but so many."""
        if self.bucketed and samples and pad_to_length is None:
            sizes = [self.size(sample["id"]) for sample in samples]
            pad_to_length = dict(zip(("source", "target"), map(max, zip(*sizes))))
        batch = super().collater(samples, pad_to_length)
        if batch:
            batch["reference"] = None
            if self.references is not None:
                references = [self.references[index] for index in batch["id"].tolist()]
                batch["reference"] = torch.cat(references)
                batch["reference_lengths"] = torch.tensor([len(row) for row in references])
        return batch
