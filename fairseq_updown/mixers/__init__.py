"""What our encoder attention is compared with: one file each, and its line here."""

from typing import Any, Dict

from ..attention.encoder import SlotAttention
from .csp import ChannelwiseSamplePermutation
from .flow import FlowAttention
from .full import FullAttention
from .hier import HierarchicalAttention
from .igloo import Igloo
from .longt5 import TransientGlobalAttention
from .luna import LunaAttention
from .ssa import StochasticAttention
from .topm import TopMAttention
from .transnormer import TransnormerAttention
from .updown_v1 import ExchangeAttention
from .updown_v2 import CachedTopkAttention

# Names of `--updown-mixer`; `updown` is ours.
MIXERS: Dict[str, Any] = {
    "updown": SlotAttention,
    "full": FullAttention,
    "csp": ChannelwiseSamplePermutation,
    "igloo": Igloo,
    "luna": LunaAttention,
    "flow": FlowAttention,
    "transnormer": TransnormerAttention,
    "ssa": StochasticAttention,
    "topm": TopMAttention,
    "hier": HierarchicalAttention,
    "longt5": TransientGlobalAttention,
    "updown_v1": ExchangeAttention,
    "updown_v2": CachedTopkAttention,
}
