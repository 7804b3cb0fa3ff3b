"""TIES and DARE against the papers' steps, spelled out here in plain loops; and through the host's loader."""

import math
import zlib

import pytest
import torch
from wan_train.core.adapters.combine import MergeOptions, combine, merged_change
from wan_train.core.adapters.formats import LoraModule
from wan_train.core.adapters.low_rank import low_rank
from wan_train.core.errors import ConfigError
from wan_train.tests.core.adapters.test_merge import PATHS, make_file

WHOLE = {"rank": 24, "density": 0.4}  # nothing is cut: the layers are 24 wide


def ties(changes, strengths, density):
    """Trim, elect, merge (arXiv:2306.01708, algorithm 1), one number at a time."""
    trimmed = []
    for change in changes:
        count = int(density * change.numel())
        least = sorted(change.abs().flatten().tolist(), reverse=True)[count - 1]
        trimmed.append(torch.where(change.abs() >= least, change, 0.0))
    result = torch.zeros_like(changes[0])
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            numbers = [float(t[i, j]) for t in trimmed]
            sign = 1.0 if sum(numbers) >= 0 else -1.0
            agreeing = [n * w for n, w in zip(numbers, strengths, strict=True) if n * sign > 0]
            result[i, j] = sum(agreeing) / max(1, len(agreeing))
    return result


def test_ties_is_the_papers():
    files = [make_file(seed) for seed in range(3)]
    strengths = (1.0, 0.5, 2.0)
    modules, report = combine(list(zip(files, strengths, strict=True)), MergeOptions(method="ties", **WHOLE))
    for path in PATHS:
        wanted = ties([file.modules[path].delta() for file in files], strengths, 0.4)
        torch.testing.assert_close(modules[path].delta(), wanted, atol=1e-5, rtol=1e-4)
    assert report.max_error < 1e-6


def test_dare_drops_at_random_and_scales_up():
    files = [make_file(seed) for seed in range(2)]
    options = MergeOptions(method="dare_linear", seed=5, **WHOLE)
    modules, _ = combine([(file, 1.0) for file in files], options)
    path = PATHS[0]
    found = modules[path].delta()
    # each number is a sum of changes that were kept, over 0.4, whichever these are
    parts = [file.modules[path].delta() / 0.4 for file in files]
    sums = torch.stack([torch.zeros_like(found), parts[0], parts[1], parts[0] + parts[1]])
    assert (sums - found).abs().amin(0).max() < 1e-4
    nearest = (sums - found).abs().argmin(0)
    shares = [(nearest == k).float().mean() for k in range(4)]
    assert shares[0] == pytest.approx(0.36, abs=0.12)
    assert shares[3] == pytest.approx(0.16, abs=0.12)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_the_seed_decides_and_torchs_own_state_is_left_alone(method):
    files = [(make_file(seed), 1.0) for seed in range(2)]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, again, other = (
        combine(files, MergeOptions(method=method, seed=seed, **WHOLE))[0][PATHS[0]].delta() for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_dare_ties_agrees_with_ties_where_nothing_is_dropped():
    parts = [(make_file(seed).modules[PATHS[0]], 1.0) for seed in range(2)]
    of = {
        m: merged_change(parts, MergeOptions(method=m, rank=4, density=1.0), 0, torch.device("cpu"))
        for m in ("ties", "dare_ties")
    }
    torch.testing.assert_close(of["ties"], ties([m.delta() for m, _ in parts], (1.0, 1.0), 1.0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(of["dare_ties"], of["ties"], atol=1e-5, rtol=1e-4)


def test_a_layer_that_one_file_lacks_is_merged_of_the_others():
    files = [(make_file(0), 1.0), (make_file(1, paths=PATHS[:1]), 1.0)]
    modules, _ = combine(files, MergeOptions(method="ties", rank=24, density=1.0))
    torch.testing.assert_close(modules[PATHS[1]].delta(), files[0][0].modules[PATHS[1]].delta(), atol=1e-5, rtol=1e-4)


def test_svd_by_energy_keeps_the_share():
    files = [(make_file(seed), 1.0) for seed in range(3)]
    modules, report = combine(files, MergeOptions(method="svd", rank=24, energy=0.8))
    for path in PATHS:
        whole = sum(file.modules[path].delta() for file, _ in files)
        values = torch.linalg.svdvals(whole.double())
        shares = values.square().cumsum(0) / values.square().sum()
        assert modules[path].rank == int((shares < 0.8).sum()) + 1
        assert report.errors[path] == pytest.approx(math.sqrt(1 - float(shares[modules[path].rank - 1])), abs=1e-4)


def test_the_largest_singular_values_of_a_large_matrix_are_found():
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(700, 60))[0], torch.linalg.qr(torch.randn(650, 60))[0]
    matrix = left @ torch.diag(0.8 ** torch.arange(60)) @ right.T
    seed = zlib.crc32(b"x")
    module, error = low_rank(matrix, 8, None, seed)
    best = math.sqrt(float((0.64 ** torch.arange(8, 60)).sum() / (0.64 ** torch.arange(60)).sum()))
    assert error == pytest.approx(best, rel=1e-3)
    assert float((module.delta() - matrix).norm() / matrix.norm()) == pytest.approx(best, rel=1e-3)
    assert torch.equal(low_rank(matrix, 8, None, seed)[0].up, module.up)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mean"}, "choose one of linear, svd"),
        ({"method": "ties"}, "cuts the result to a rank: give rank"),
        ({"method": "linear", "rank": 4}, "always adds the ranks"),
        ({"method": "ties", "rank": 4, "density": 0.0}, "density is the share to keep"),
        ({"method": "svd", "rank": 4, "energy": 1.5}, "energy is the share to keep"),
    ],
)
def test_what_cannot_be_is_one_sentence(settings, message):
    with pytest.raises(ConfigError, match=message):
        MergeOptions(**settings)


def test_widths_that_do_not_fit_are_refused():
    files = [(make_file(0), 1.0), (make_file(1, width=16), 1.0)]
    with pytest.raises(ConfigError, match="models of different size"):
        combine(files, MergeOptions(method="ties", rank=4))


def test_a_module_is_a_plain_lora():
    modules, _ = combine([(make_file(0), 1.0)], MergeOptions(method="dare_ties", rank=3))
    assert all(isinstance(m, LoraModule) and m.rank == 3 and m.scale == 1 for m in modules.values())
