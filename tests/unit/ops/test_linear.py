"""Float8 matrices: how far rounding moves them, that products are those of the rounded matrices, and which stay out."""

from pathlib import Path

import pytest
import torch

from strop.model.pretrained.weights import freeze, load_decoder
from strop.ops.linear import Float8Weight, FrozenWeight, quantise_rows
from tiny_models import write_checkpoint

OUT, IN, TOKENS = 96, 160, 32


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_rounding_moves_a_normal_matrix_by_two_to_three_percent() -> None:
    weight = torch.randn(OUT, IN).bfloat16()
    frozen = Float8Weight(weight)
    assert 0.02 < frozen.error(weight) < 0.032
    assert 0.02 < Float8Weight(weight * 2**-20).error(weight * 2**-20) < 0.032  # whatever its scale
    assert frozen.error(weight.roll(1, 0)) > 1
    assert frozen.shape == (OUT, IN)
    frozen.scale_I *= 1.1  # the second copy counts as well
    assert frozen.error(weight) > 0.05


def test_products_are_those_of_the_rounded_matrices() -> None:
    frozen = Float8Weight(torch.randn(OUT, IN).bfloat16())
    x, grad = quantise_rows(torch.randn(TOKENS, IN) * 3), quantise_rows(torch.randn(TOKENS, OUT) * 1e-3)
    rounded = frozen.weight.double() * frozen.scale_O[:, None]
    rounded_t = frozen.weight_t.double() * frozen.scale_I[:, None]
    for got, operand, matrix in (
        (frozen.product(x), x, rounded),
        (frozen.product_back(grad), grad, rounded_t),
    ):
        assert got.dtype == torch.bfloat16
        exact = operand.values.double() * operand.scale_T[:, None] @ matrix.t()
        assert (got.double() - exact).norm() / exact.norm() < 2**-8  # bfloat16's rounding of the result
        unscaled = operand.values.double() @ matrix.t()
        assert (got.double() - unscaled).norm() / exact.norm() > 1
    assert (rounded - rounded_t.t()).norm() / rounded.norm() > 0.01  # the copies are rounded each by itself


def test_a_plain_tensor_is_quantised_on_the_way() -> None:
    weight = torch.randn(OUT, IN)
    frozen, x, grad = Float8Weight(weight.bfloat16()), torch.randn(TOKENS, IN), torch.randn(TOKENS, OUT)
    for got, want in ((frozen.project(x), x @ weight.t()), (frozen.backproject(grad), grad @ weight)):
        assert 0.02 < (got.float() - want).norm() / want.norm() < 0.06


@pytest.mark.parametrize("shape", [(OUT, IN + 8), (OUT + 4, IN)])
def test_sides_that_float8_products_cannot_read_stay(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape).bfloat16()
    frozen = freeze(weight, float8=True)
    assert type(frozen) is FrozenWeight
    assert torch.equal(frozen.weight, weight)


def test_a_matrix_that_rounding_moves_too_far_stays() -> None:
    assert type(freeze(torch.randn(OUT, IN).bfloat16(), float8=True)) is Float8Weight
    assert type(freeze(torch.randn(OUT, IN).bfloat16(), float8=False)) is FrozenWeight
    halfway = torch.full((OUT, IN), 17.0)  # where 28 becomes 448, this becomes 272: halfway between float8's numbers
    halfway[0] = halfway[:, 0] = 28.0
    assert Float8Weight(halfway).error(halfway) > 0.05
    frozen = freeze(halfway.bfloat16(), float8=True)
    assert type(frozen) is FrozenWeight
    assert torch.equal(frozen.weight, halfway.bfloat16())


def test_a_row_that_an_outlier_wipes_out_stays() -> None:
    weight = torch.randn(OUT, IN)
    weight[7, 5] = 1e6
    assert (Float8Weight(weight).weight[7].float() == 0).float().mean() > 0.9
    assert type(freeze(weight.bfloat16(), float8=True)) is FrozenWeight


def test_the_decoder_says_what_it_holds(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "smollm2", hidden_size=32, intermediate_size=64)
    plain = load_decoder(folder, torch.bfloat16)
    float8 = load_decoder(folder, torch.bfloat16, float8=True)
    assert (plain.precision, float8.precision) == ("bfloat16", "float8")
    assert load_decoder(folder, torch.float32).precision == "float32"
    assert float8.num_base_parameters == plain.num_base_parameters
    held = sum(buffer.numel() for buffer in float8.buffers())
    assert held > float8.num_base_parameters  # each matrix is there twice, with its scales
    kinds = {type(projection.frozen) for layer in float8.layers for projection in (layer.qkv, layer.o, layer.down)}
    assert kinds == {Float8Weight}
    assert type(float8.head) is FrozenWeight
    odd = load_decoder(
        write_checkpoint(tmp_path / "odd", "smollm2", hidden_size=40, num_attention_heads=2, intermediate_size=72),
        torch.bfloat16,
        float8=True,
    )
    assert odd.precision == "bfloat16"  # no side is a multiple of 16, so nothing is float8
