"""Masters in files: named by content, written once, never changed."""

import pytest
import torch
from wan_train.core.errors import RunError
from wan_train.core.memory.master import BlockMaster, frozen_tensors
from wan_train.tests.core.memory.helpers import CPU, make_model


def test_equal_blocks_share_a_file_and_others_do_not(tmp_path):
    first, second = make_model(), make_model()
    BlockMaster(first.blocks[0], "mapped", device=CPU, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    BlockMaster(second.blocks[0], "mapped", device=CPU, folder=tmp_path)
    assert [path] == list(tmp_path.iterdir())
    assert path.stat().st_mtime_ns == written
    third = make_model()
    third.get_parameter("blocks.0.modulation").data[0, 0, 0] += 1
    BlockMaster(third.blocks[0], "mapped", device=CPU, folder=tmp_path)
    BlockMaster(third.blocks[1], "mapped", device=CPU, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_same_bytes_of_another_shape_are_another_file(tmp_path):
    block = torch.nn.Module()
    block.register_buffer("weight", torch.zeros(2, 6))
    BlockMaster(block, "mapped", device=CPU, folder=tmp_path)
    block.weight = torch.zeros(3, 4)
    BlockMaster(block, "mapped", device=CPU, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_file_is_read_only_and_stays_as_it_is(tmp_path):
    model = make_model()
    weights = [tensor.clone() for tensor in frozen_tensors(model.blocks[0])]
    BlockMaster(make_model().blocks[0], "mapped", device=CPU, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.chmod(0o444)
    content = path.read_bytes()
    BlockMaster(model.blocks[0], "mapped", device=CPU, folder=tmp_path)
    for tensor, weight in zip(frozen_tensors(model.blocks[0]), weights, strict=True):
        assert torch.equal(tensor, weight)
        tensor.add_(1)  # whatever somebody does to the weights in memory
    assert path.read_bytes() == content


def test_a_file_that_was_cut_short_is_written_anew(tmp_path):
    weights = [tensor.clone() for tensor in frozen_tensors(make_model().blocks[0])]
    BlockMaster(make_model().blocks[0], "mapped", device=CPU, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:100])
    model = make_model()
    BlockMaster(model.blocks[0], "mapped", device=CPU, folder=tmp_path)
    assert path.read_bytes() == content
    assert all(torch.equal(a, b) for a, b in zip(frozen_tensors(model.blocks[0]), weights, strict=True))


def test_a_full_disk_is_a_sentence_and_leaves_the_block_alone(small_disk):
    block = torch.nn.Linear(1000, 1000).requires_grad_(False)
    before = block.weight.clone()
    with pytest.raises(RunError, match=r"is full .* no weights were changed"):
        BlockMaster(block, "mapped", device=CPU, folder=small_disk / "blocks")
    assert torch.equal(block.weight, before)
    assert not list((small_disk / "blocks").iterdir())
