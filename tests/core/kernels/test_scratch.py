"""Memory for one weight at a time in another form."""

import pytest
import torch

pytest.importorskip("triton")
from wan_train.core.kernels.apply import use_kernels
from wan_train.core.kernels.linears import make_product
from wan_train.core.kernels.scratch import Scratch
from wan_train.core.memory.frozen_linear import RowScaledLinear
from wan_train.core.memory.products import DenseProduct
from wan_train.tests.core.kernels import reference
from wan_train.tests.core.kernels.test_blocks import DEVICE, make_block


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_all_layers_of_a_model_take_one_matrix(precision, monkeypatch):
    """Of the size of the largest, from the first product on; the numbers are those of a matrix of its own."""
    if DEVICE.type == "cpu":
        reference.put_in_place(monkeypatch)
    model = make_block(precision=precision)
    ops, _ = use_kernels(model)
    layers = [layer for layer in model.blocks.modules() if isinstance(layer, RowScaledLinear)]
    products = [make_product(layer, ops) for layer in layers]
    assert len({(layer.out_features, layer.in_features) for layer in layers}) == 3
    places = set()
    with torch.no_grad():
        for layer, product in zip(layers, products, strict=True):
            x = torch.randn(3, layer.in_features, device=DEVICE)
            grad = torch.randn(3, layer.out_features, device=DEVICE)
            assert torch.equal(product.forward(x), DenseProduct(layer).forward(x))
            assert torch.equal(product.gradient(grad, None), DenseProduct(layer).gradient(grad, None))
            places.add(product._matrix(x.dtype).untyped_storage().data_ptr())
        taken = ops.scratch.take((1, 1), torch.float32, DEVICE).untyped_storage()
    assert places == {taken.data_ptr()}
    assert taken.nbytes() == 4 * max(layer.out_features * layer.in_features for layer in layers)


def test_it_grows_where_more_is_asked_for_than_expected():
    scratch = Scratch()
    scratch.expect((4, 4), torch.bfloat16)
    with torch.no_grad():
        first = scratch.take((2, 2), torch.float32, torch.device("cpu"))
        assert first.untyped_storage().nbytes() == 32
        assert scratch.take((4, 4), torch.float32, torch.device("cpu")).untyped_storage().nbytes() == 64
        assert scratch.take((2, 2), torch.float32, torch.device("cpu")).untyped_storage().nbytes() == 64


def test_autograd_is_not_given_what_is_written_over():
    with pytest.raises(AssertionError, match="autograd would keep"):
        Scratch().take((2, 2), torch.float32, torch.device("cpu"))
