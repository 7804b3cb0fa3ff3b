import pytest
import torch
from wan_train.core.shortage import free_caches, is_out_of_memory, shortage_of, try_twice


def too_large():
    """What torch itself raises for a tensor of 2^60 bytes on the CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(too_large())
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_which_memory_is_out_by_what_libraries_say():
    for text in (
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "NCCL error in: x.cpp:1, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ):
        assert shortage_of(RuntimeError(text)) == "vram", text
    assert shortage_of(RuntimeError("CUDA error: unspecified launch failure")) is None
    assert shortage_of(too_large()) == "ram"


@pytest.mark.parametrize(
    "text",
    [
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_what_has_many_causes_is_a_shortage_where_the_gpu_is_full(monkeypatch, text):
    error = RuntimeError(text)

    def broken():
        raise RuntimeError("CUDA error: unspecified launch failure")

    for info, found in (
        (lambda: (400 * 2**20, 80 * 2**30), "vram"),
        (lambda: (8 * 2**30, 80 * 2**30), None),
        (broken, None),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", info)
        assert shortage_of(error) == found
        assert is_out_of_memory(error) == (found is not None)


def test_cudnn_says_whose_memory_it_was():
    said = "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_{}_ALLOCATION_FAILED"
    assert shortage_of(RuntimeError(said.format("HOST"))) == "ram"
    assert shortage_of(RuntimeError(said.format("DEVICE"))) == "vram"
    assert shortage_of(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_COMPILATION_FAILED")) is None


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_second_try_after_freeing(failures):
    calls = []

    def act():
        calls.append("act")
        if calls.count("act") <= failures:
            raise torch.OutOfMemoryError("provoked")
        return 7

    def free():
        calls.append("free")
        free_caches()

    if failures == 2:
        with pytest.raises(torch.OutOfMemoryError):
            try_twice(act, free)
    else:
        assert try_twice(act, free) == 7
    assert calls == ["act", "free", "act"][: 1 if failures == 0 else 3]


def test_other_errors_are_not_tried_again():
    calls = []

    def act():
        calls.append(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        try_twice(act, free_caches)
    assert calls == [1]
