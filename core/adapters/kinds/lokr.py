"""LoKr (Yeh et al., 2023, arXiv:2309.14859): the change of a weight is the Kronecker product of two small matrices.

Legend: L tokens, in = m n, out = p k widths of the linear layer; w1 [p, m], w2 [k, n], itself a product of rank r or whole.
The product is never formed: x as [m, n] is multiplied by w2, then by w1, which is in/m and out/k as wide.
"""

from functools import lru_cache, partial

from torch import Tensor, nn
from torch.nn import functional

from ...settings.adapter import AdapterOptions
from ..kind import AdapterKind, KeptBytes, LayerShape
from ..other_files import read_state, write_state
from ..places import Place
from ..wrapped import (
    WrappedLinear,
    around,
    match_wrapped,
    no_light_forward,
    wrap,
    wrapped_layers,
    wrapped_state,
)

KIND = "lokr"


@lru_cache
def factorization(number: int, factor: int) -> tuple[int, int]:
    """Two factors of a width, the smaller first: `factor` where it divides and is the smaller, else the largest that is not
    above it; 0: as near to each other as there are. As LyCORIS's function of this name."""
    if factor and number % factor == 0 and number >= factor**2:
        return factor, number // factor
    most = factor or number
    small = max(each for each in range(1, int(number**0.5) + 1) if number % each == 0 and each <= most)
    return small, number // small


def _parts(shape: LayerShape, rank: int, options: AdapterOptions) -> tuple[int, int, int, int, bool]:
    """(p, k, m, n, whether w2 is whole), as LyCORIS decides it: whole where two factors would be no smaller."""
    (p, k), (m, n) = factorization(shape[0], options.lokr_factor), factorization(shape[1], options.lokr_factor)
    return p, k, m, n, options.lokr_full or rank >= max(k, n) / 2


class LokrLinear(WrappedLinear):
    """w1 and, where w2 is a product, its factors are drawn; w2 or its second factor is zero."""

    kind = KIND

    def __init__(self, base: nn.Module, place: Place, options: AdapterOptions) -> None:
        super().__init__(base, place, options)
        shape = (self.out_features, self.in_features)
        self.p, self.k, self.m, self.n, self.is_full = _parts(shape, place.rank, options)
        self.add("lokr_w1", (self.p, self.m))
        if self.is_full:
            self.alpha = float(place.rank)  # a whole matrix has no strength beside its own: loaders read none
            self.add("lokr_w2", (self.k, self.n))
        else:
            self.add("lokr_w2_a", (self.k, place.rank))
            self.add("lokr_w2_b", (place.rank, self.n))

    def start(self, seed: int, path: str) -> None:
        """The values before the first step, as LyCORIS has them."""
        self.draw(seed, path, ("lokr_w1",) if self.is_full else ("lokr_w1", "lokr_w2_a"))

    def change(self, x: Tensor) -> Tensor:
        """x [..., m n] -> [..., p k]."""
        if self.is_full:
            w2 = self.get_parameter("lokr_w2")
        else:
            w2 = self.get_parameter("lokr_w2_a") @ self.get_parameter("lokr_w2_b") * (self.alpha / self.rank)
        x_LMN = x.reshape(-1, self.m, self.n)
        h_LKM = functional.linear(x_LMN, w2.to(x.dtype)).transpose(1, 2).contiguous()
        y_LKP = functional.linear(h_LKM, self.get_parameter("lokr_w1").to(x.dtype))
        return y_LKP.transpose(1, 2).reshape(*x.shape[:-1], self.p * self.k)


def put_on(model: nn.Module, options: AdapterOptions, seed: int) -> list[tuple[str, nn.Parameter]]:
    """Freeze `model` and put a float32 LoKr on its linear layers, in place."""
    return wrap(model, options, seed, LokrLinear)


def matrices(shape: LayerShape, rank: int, options: AdapterOptions) -> tuple[LayerShape, ...]:
    """w1, and w2 or its factors."""
    p, k, m, n, is_full = _parts(shape, rank, options)
    return ((p, m), (k, n)) if is_full else ((p, m), (k, rank), (rank, n))


def kept(shape: LayerShape, rank: int, options: AdapterOptions, element_size: int) -> KeptBytes:
    """x w2^T; w1 and w2 in the compute dtype, where these are not the parameters themselves."""
    p, k, m, n, is_full = _parts(shape, rank, options)
    w1 = element_size * p * m if element_size < 4 else 0
    w2 = element_size * k * n if element_size < 4 or not is_full else 0
    return KeptBytes(element_size * k * m, w1 + w2)


METHOD = AdapterKind(
    help="LoKr, the Kronecker product of two small matrices: a small file, or much capacity for its size with lokr_full",
    put_on=put_on,
    layers=partial(wrapped_layers, kind=KIND),
    state=partial(wrapped_state, kind=KIND),
    matched=partial(match_wrapped, kind=KIND),
    light_forward=no_light_forward,
    matrices=matrices,
    kept=kept,
    to_file=write_state,
    from_file=partial(read_state, kind=KIND),
    weight_traffic=47.0,  # of a 14B model in bf16: benchmarks/results/methods-h200.json
    is_plain=False,
    around=around,
    more_units=(2.0, 0.0),
)
