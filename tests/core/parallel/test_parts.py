"""Which tokens each GPU has, and what can't be shared."""

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.parallel.parts import Parts, check_heads, largest_part


@pytest.mark.parametrize(("heads", "good", "bad"), [(40, 8, 16), (24, 12, 16), (12, 6, 8)])
def test_heads_must_divide(heads, good, bad):
    """Those of 14B, 5B and 1.3B."""
    check_heads(heads, good)
    with pytest.raises(
        ConfigError, match=f"{bad} GPUs can't share(.|\n)*{heads} attention heads(.|\n)*context_parallel"
    ):
        check_heads(heads, bad)


def test_parts_of_a_frame():
    """Each token is in one part, and a part has as many of each frame."""
    parts = Parts(frames=3, frame_tokens=7, ranks=3)
    assert parts.sizes == (3, 2, 2)
    assert parts.tokens == (9, 6, 6)
    assert largest_part(21, 3, 3) == 9
    x = torch.arange(21).view(1, 21, 1)
    cut = [parts.cut(x, rank) for rank in range(3)]
    assert cut[1].flatten().tolist() == [3, 4, 10, 11, 17, 18]
    assert torch.equal(parts.join(cut), x)
