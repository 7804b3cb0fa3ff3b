"""A GPU that has failed is told from one that is full, from a call that it refused, and from every other error."""

import pytest
import torch
from wan_train.core.errors import START_AGAIN, ConfigError
from wan_train.core.gpu_failure import GpuFailedError, failed_sentence, gpu_failure, telling_failures

LAUNCH = (
    "CUDA error: unspecified launch failure\nSearch for `cudaErrorLaunchFailure' in https://docs.nvidia.com/cuda/ for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call.\n"
)
AcceleratorError = getattr(torch, "AcceleratorError", RuntimeError)  # from torch 2.8 on


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUNCH, "CUDA error: unspecified launch failure"),
        (
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: an illegal memory access was encountered",
        ),
        ("Triton Error [CUDA]: misaligned address", "Triton Error [CUDA]: misaligned address"),
        (
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa)`",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa)`",
        ),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_EXECUTION_FAILED"),
        ("HIP error: the launch timed out and was terminated", "HIP error: the launch timed out and was terminated"),
        ("CUDA error: uncorrectable ECC error encountered", "CUDA error: uncorrectable ECC error encountered"),
        (
            "NCCL error in: x.cpp:1, unhandled cuda error\nLast error:\nCuda failure 719 'unspecified launch failure'",
            "Cuda failure 719 'unspecified launch failure'",
        ),
        ("NCCL error in: x.cpp:1, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'", ""),
        ("NCCL error in: x.cpp:1, remote process exited or there was a network error", ""),
        ("CUDA error: out of memory", ""),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", ""),
        ("CUDA error: no kernel image is available for execution on the device", ""),
        ("CUDA error: invalid device ordinal", ""),
        ("CUDA error: operation not permitted when stream is capturing", ""),
        ("CUDA error: operation failed due to a previous error during capture", ""),
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmulAlgoGetHeuristic( ltHandle, a)`", ""),
        ("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx( handle, opa)`", ""),
        ("CUDA error: CUBLAS_STATUS_ARCH_MISMATCH when calling `cublasGemmEx( handle, opa)`", ""),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", ""),
        ("CUDA error: the provided PTX was compiled with an unsupported toolchain.", ""),
        ("Triton Error [CUDA]: device kernel image is invalid", ""),
        ("CUDA error: a PTX JIT compilation failed", ""),
        ("CUDA error: too many resources requested for launch", ""),
        ("mat1 and mat2 shapes cannot be multiplied", ""),
    ],
)
def test_what_is_a_failure(text, reason):
    assert gpu_failure(RuntimeError(text)) == reason
    assert gpu_failure(AcceleratorError(text)) == reason


def test_it_is_found_behind_what_failed_because_of_it():
    """Cleaning up gives errors of its own."""

    def fail():
        try:
            raise AcceleratorError(LAUNCH)
        finally:
            raise AssertionError("a block is still under way")

    with pytest.raises(AssertionError) as caught:
        fail()
    assert gpu_failure(caught.value) == "CUDA error: unspecified launch failure"
    assert gpu_failure(AssertionError("alone")) == ""
    assert gpu_failure(ValueError(LAUNCH)) == ""  # of text that somebody gave


def test_it_is_told_with_what_is_kept():
    def fail(progress):
        with telling_failures(torch.device("cuda:1"), lambda: progress, rank=3):
            raise AcceleratorError(LAUNCH)

    with pytest.raises(GpuFailedError) as caught:
        fail((41, 40))
    said = str(caught.value)
    assert said.startswith(
        "the GPU cuda:1 of rank 3 failed after step 41 (CUDA error: unspecified launch failure). Possible causes: the driver"
    )
    assert "The checkpoint of step 40 is kept: start the run again, and it goes on from there." in said
    assert caught.value.about == START_AGAIN
    with pytest.raises(GpuFailedError, match=r"failed before the first step was done .* There is no checkpoint yet"):
        fail((0, 0))
    assert "\n" not in failed_sentence("the GPU cuda:0", "why", done=1, checkpoint=0)


def test_a_gpu_that_another_program_has_to_itself_has_not_failed():
    error = AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nSearch for ...")
    with pytest.raises(GpuFailedError) as caught, telling_failures(torch.device("cuda:0"), lambda: (0, 40)):
        raise error
    said = str(caught.value)
    assert said.startswith(
        "the GPU cuda:0 can't be used now (CUDA error: CUDA-capable device(s) is/are busy or unavailable): another program"
    )
    assert "choose another device. The checkpoint of step 40 is kept" in said
    assert "overclock" not in said


def test_an_internal_error_of_cudnn_is_a_failure_unless_the_gpu_is_full(monkeypatch):
    error = RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR")
    for free, reason in ((400 * 2**20, ""), (8 * 2**30, "CUDNN_STATUS_INTERNAL_ERROR")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 * 2**30))
        assert gpu_failure(error) == reason


def test_other_errors_pass():
    for error in (
        ConfigError("x"),
        torch.OutOfMemoryError("CUDA out of memory."),
        KeyboardInterrupt(),
        ZeroDivisionError(),
    ):
        with pytest.raises(type(error)) as caught, telling_failures(torch.device("cpu"), lambda: (0, 0)):
            raise error
        assert caught.value is error
