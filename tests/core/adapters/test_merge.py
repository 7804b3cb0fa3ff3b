import re

import pytest
import torch
from wan_train.core.adapters.formats import LoraFile, LoraModule
from wan_train.core.adapters.merge import check_pair, merge, pair_names, resize
from wan_train.core.errors import ConfigError

PATHS = ("blocks.0.self_attn.q", "blocks.2.ffn.0", "blocks.10.ffn.2")


def make_file(seed=0, *, rank=4, alpha=2.0, paths=PATHS, name="x.safetensors", width=24, metadata=None) -> LoraFile:
    generator = torch.Generator().manual_seed(seed)
    modules = {
        path: LoraModule(
            down=torch.randn(rank, width, generator=generator),
            up=torch.randn(32, rank, generator=generator),
            alpha=alpha,
        )
        for path in paths
    }
    return LoraFile(path=name, modules=modules, style="official", metadata=metadata or {})


def relative_error(found: LoraModule, delta: torch.Tensor) -> float:
    return float((found.delta() - delta).norm() / delta.norm())


def test_concat_is_exact():
    one, two = make_file(1, rank=4), make_file(2, rank=6, alpha=12.0, paths=PATHS[1:])
    modules, report = merge([(one, 0.7), (two, -1.5)], rank=None, method="concat")
    assert list(modules) == list(PATHS)
    assert report.ranks == {PATHS[0]: 4, PATHS[1]: 10, PATHS[2]: 10}
    assert report.max_error == 0.0
    for path, module in modules.items():
        delta = 0.7 * one.modules[path].delta()
        if path in two.modules:
            delta = delta - 1.5 * two.modules[path].delta()
        assert module.alpha == module.rank
        torch.testing.assert_close(module.delta(), delta, atol=1e-5, rtol=1e-5)


def test_svd_merge_is_the_best_approximation_and_says_how_good():
    one, two = make_file(1), make_file(2)
    modules, report = merge([(one, 1.0), (two, 0.5)], rank=3, method="svd")
    for path, module in modules.items():
        delta = one.modules[path].delta() + 0.5 * two.modules[path].delta()
        values = torch.linalg.svdvals(delta.double())
        best = float(values[3:].norm() / values.norm())
        assert module.rank == 3
        assert report.errors[path] == pytest.approx(best, rel=1e-4)
        assert relative_error(module, delta) == pytest.approx(best, rel=1e-4)
    assert report.max_error == max(report.errors.values())
    assert str(report).startswith("3 modules of rank 3; largest relative error ")


def test_svd_merge_with_enough_rank_is_exact():
    one, two = make_file(1), make_file(2)
    modules, report = merge([(one, 1.0), (two, 1.0)], rank=100, method="svd")
    assert set(report.ranks.values()) == {8}
    assert report.max_error == 0.0
    for path, module in modules.items():
        assert relative_error(module, one.modules[path].delta() + two.modules[path].delta()) < 1e-6


def test_resize_of_a_redundant_lora_is_exact():
    one = make_file(1, rank=3, alpha=6.0)
    doubled, _ = merge([(one, 0.25), (one, 0.75)], rank=None, method="concat")
    file = LoraFile(path="d", modules=doubled, style="official", metadata={})
    for arguments in ({"rank": 3}, {"energy": 0.999999}, {"rank": 5, "energy": 0.999999}):
        modules, report = resize(file, **arguments)
        assert set(report.ranks.values()) == {3}
        assert report.max_error < 1e-6
        assert all(relative_error(modules[path], one.modules[path].delta()) < 1e-6 for path in PATHS)


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95, 1.0])
def test_energy_keeps_the_fewest_values_that_suffice(energy):
    file = make_file(3, rank=8)
    modules, report = resize(file, energy=energy)
    for path, module in modules.items():
        squares = torch.linalg.svdvals(file.modules[path].delta().double())[:8].square()
        shares = squares.cumsum(0) / squares.sum()
        assert shares[module.rank - 1] >= energy - 1e-6
        assert module.rank == 1 or shares[module.rank - 2] < energy
        assert report.errors[path] ** 2 <= 1 - energy + 1e-6


def test_resize_works_where_the_rank_exceeds_the_layer():
    file = make_file(1, rank=40)
    modules, report = resize(file, rank=64)
    assert set(report.ranks.values()) == {24}
    assert all(relative_error(modules[path], file.modules[path].delta()) < 1e-6 for path in PATHS)


def test_resize_of_zeros_stays_zero():
    module = LoraModule(down=torch.ones(4, 6), up=torch.zeros(5, 4), alpha=4.0)
    file = LoraFile(path="z", modules={PATHS[0]: module}, style="official", metadata={})
    for arguments in ({"energy": 0.9}, {"rank": 1}):
        modules, report = resize(file, **arguments)
        assert report.ranks == {PATHS[0]: 1}
        assert report.max_error == 0.0
        assert not modules[PATHS[0]].delta().any()


def test_bf16_files_merge_in_fp32():
    file = make_file(1)
    half = {p: LoraModule(down=m.down.bfloat16(), up=m.up.bfloat16(), alpha=m.alpha) for p, m in file.modules.items()}
    modules, _ = resize(LoraFile(path="h", modules=half, style="official", metadata={}), rank=4)
    assert {module.up.dtype for module in modules.values()} == {torch.float32}
    assert all(relative_error(modules[path], half[path].delta()) < 1e-6 for path in PATHS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: merge([], rank=None, method="concat"), "nothing to merge"),
        (lambda: merge([(make_file(), 1.0)], rank=4, method="concat"), "'concat' always adds the ranks"),
        (lambda: merge([(make_file(), 1.0)], rank=None, method="svd"), "rank must be at least 1, got None"),
        (
            lambda: merge([(make_file(), 1.0), (make_file(width=8, name="b"), 1.0)], rank=None, method="concat"),
            r"b cannot be merged with x.safetensors: blocks.0.self_attn.q is \(32, 8\)",
        ),
        (lambda: resize(make_file()), "Say how to resize"),
        (lambda: resize(make_file(), rank=0), "rank must be at least 1, got 0"),
        (lambda: resize(make_file(), energy=1.5), "energy is the share to keep.* got 1.5"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


HIGH = {"modelspec.timestep_range": "875,1000", "modelspec.architecture": "wan2.2-t2v-a14b/lora"}
LOW = {"modelspec.timestep_range": "0,875", "modelspec.architecture": "wan2.2-t2v-a14b/lora"}


def good_pair():
    high, low = pair_names("me")
    return make_file(1, name=high, metadata=HIGH), make_file(2, name=low, metadata=LOW)


def test_a_good_pair_has_no_warnings():
    assert check_pair(*good_pair()) == []


def test_swapped_pair_is_noticed_by_name_and_metadata():
    high, low = good_pair()
    warnings = check_pair(low, high)
    assert len(warnings) == 4
    assert warnings[0] == "me_low_noise.safetensors is used for the high-noise expert, but its metadata says low."
    assert warnings[3] == "me_high_noise.safetensors is used for the low-noise expert, but its name says high."


@pytest.mark.parametrize(
    ("low", "message"),
    [
        (make_file(1), "hold the same weights"),
        (
            make_file(2, paths=PATHS[:2]),
            "different modules: 1 only in the high one, 0 only in the low one, .*blocks.10",
        ),
        (make_file(2, rank=8), "ranks differ: high 4, low 8"),
        (make_file(2, width=8), r"models of different size: blocks.0.self_attn.q is \(32, 24\)"),
        (
            make_file(2, metadata={"modelspec.architecture": "wan2.1-t2v-1.3b/lora"}),
            "different models: high wan2.2-t2v-a14b, low wan2.1-t2v-1.3b",
        ),
    ],
)
def test_what_is_wrong_with_a_pair_is_said(low, message):
    (warning,) = check_pair(make_file(1, metadata=HIGH), low)
    assert re.search(message, warning), warning


def test_pair_names():
    assert pair_names("me") == ("me_high_noise.safetensors", "me_low_noise.safetensors")
