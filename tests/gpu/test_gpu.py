"""What only a CUDA device can show: bfloat16 kernels, the GPU's own arithmetic, and a run that resumes on it.

Low precision is held to FlashAttention's rule: at most twice the error that plain PyTorch has in the same type, both
measured against float32.
"""

from pathlib import Path

import pytest
import torch

from strop.microbatch.tree import Tree
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.ops import reference
from strop.ops.attention import attention
from strop.ops.elementwise import rms_norm, rotary, swiglu
from strop.ops.linear import FrozenWeight, lora_linear
from strop.ops.linear_cross_entropy import linear_cross_entropy
from strop.recipe import LoraSection
from tiny_models import load_oracle, write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = (148, 1, 33, 700, 115)


def outputs(function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """A function's value and gradients for a fixed cotangent, in float32."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    generator = torch.Generator(device="cuda").manual_seed(7)
    cotangent = torch.randn(out.shape, device="cuda", generator=generator).to(out.dtype)
    return [x.float() for x in (out.detach(), *torch.autograd.grad(out, leaves, cotangent))]


def assert_twice(fast, plain, inputs: list[torch.Tensor], bound: float = 1e-6) -> None:
    want = outputs(plain, [x.float() for x in inputs])
    slow = outputs(plain, inputs)
    got = outputs(fast, inputs)
    for a, b, exact in zip(got, slow, want, strict=True):
        assert (a - exact).norm() <= 2 * (b - exact).norm() + bound * exact.norm()


@pytest.mark.parametrize("width", [64, 96, 128])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("window", [None, 50])
def test_attention(width: int, heads: tuple[int, int], window: int | None) -> None:
    torch.manual_seed(0)
    tokens, tree = sum(LENGTHS), Tree.of(LENGTHS)
    qkv = [torch.randn(tokens, n, width, device="cuda").bfloat16() for n in (heads[0], heads[1], heads[1])]
    assert_twice(
        lambda q, k, v: attention(q, k, v, tree, window),
        lambda q, k, v: reference.attention(q, k, v, LENGTHS, window),
        qkv,
    )
    leaky = Tree.of((tokens,))
    with pytest.raises(AssertionError):
        assert_twice(
            lambda q, k, v: attention(q, k, v, leaky, window),
            lambda q, k, v: reference.attention(q, k, v, LENGTHS, window),
            qkv,
        )


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("window", [None, 50])
def test_attention_of_a_prefix_tree(heads: tuple[int, int], window: int | None) -> None:
    torch.manual_seed(0)
    parents = (-1, 0, 1, 1, 0)
    qkv = [torch.randn(sum(LENGTHS), n, 96, device="cuda").bfloat16() for n in (heads[0], heads[1], heads[1])]

    def check(tree: Tree) -> None:
        assert_twice(
            lambda q, k, v: attention(q, k, v, tree, window),
            lambda q, k, v: reference.attention(q, k, v, LENGTHS, window, parents),
            qkv,
        )

    check(Tree.of(LENGTHS, parents))
    with pytest.raises(AssertionError):
        check(Tree.of(LENGTHS))


def test_the_loss_has_the_same_bits_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several labels a row, and chunks of eight rows."""
    monkeypatch.setattr("strop.ops.linear_cross_entropy.LOGITS_BYTES", 4 * 32064 * 8)
    torch.manual_seed(0)
    hidden, head = (torch.randn(n, 64, device="cuda").bfloat16() for n in (500, 32064))
    rows = torch.arange(500, device="cuda").repeat_interleave(3)
    labels, weights = torch.arange(1500, device="cuda") * 7, torch.arange(1500, device="cuda") % 5 + 1.0

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(hidden, FrozenWeight(head), rows, labels, weights)

    first = outputs(loss, [hidden])
    assert all(torch.equal(a, b) for _ in range(20) for a, b in zip(outputs(loss, [hidden]), first, strict=True))
    assert_twice(
        loss,
        lambda hidden: reference.linear_cross_entropy(hidden, head.to(hidden.dtype), rows, labels, weights),
        [hidden],
        bound=1e-5,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 3072), (333, 576), (37, 4, 96)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, gain = torch.randn(shape, device="cuda").to(dtype), torch.rand(shape[-1], device="cuda").to(dtype) + 0.5
    assert_twice(
        lambda x: rms_norm(x, gain, 1e-5), lambda x: reference.rms_norm(x, gain.to(x.dtype), 1e-5), [x], bound=2e-6
    )
    with pytest.raises(AssertionError):
        assert_twice(lambda x: rms_norm(x, gain, 1.0), lambda x: reference.rms_norm(x, gain.to(x.dtype), 1e-5), [x])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 16384), (333, 3072), (5, 200)])
def test_swiglu(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device="cuda").to(dtype)
    assert_twice(swiglu, reference.swiglu, [x], bound=2e-6)
    with pytest.raises(AssertionError):
        assert_twice(lambda x: swiglu(x.roll(1, -1)), reference.swiglu, [x])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "width", "half"), [(32, 96, 48), (3, 64, 32), (9, 128, 48)])
def test_rotary(dtype: torch.dtype, heads: int, width: int, half: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(301, 2 * heads, width, device="cuda").to(dtype)
    angle = torch.randn(301, half, device="cuda")
    tables = angle.cos().to(dtype), angle.sin().to(dtype)
    wide = tuple(table.float() for table in tables)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return reference.rotary(x[:, heads:], *(wide if x.dtype == torch.float32 else tables))

    assert_twice(lambda x: rotary(x[:, heads:], *tables), plain, [qkv], bound=2e-6)
    with pytest.raises(AssertionError):
        assert_twice(lambda x: rotary(x[:, heads:], tables[0], -tables[1]), plain, [qkv])


def test_lora_linear() -> None:
    torch.manual_seed(0)
    rows = ((0, 256), (256, 384), (384, 512))
    x, weight = (torch.randn(s, device="cuda").bfloat16() for s in ((300, 320), (512, 320)))
    a, b = (torch.randn(s, device="cuda").bfloat16() * 0.1 for s in ((48, 320), (512, 16)))
    assert_twice(
        lambda x, a, b: lora_linear(x, FrozenWeight(weight), None, a, b, rows, 0.5),
        lambda x, a, b: reference.lora_linear(x, weight.to(x.dtype), None, a, b, rows, 0.5),
        [x, a, b],
    )


@pytest.mark.parametrize("family", ["llama3", "phi3", "qwen3", "mistral-window"])
def test_a_bfloat16_model_is_as_close_as_transformers(family: str, tmp_path: Path) -> None:
    # Flash attention wants head widths that are multiples of eight
    folder = write_checkpoint(tmp_path, family, hidden_size=64, head_dim=16)
    ids, lengths = torch.randint(3, 128, (43,)), (7, 1, 23, 12)
    exact, rough = load_oracle(folder, torch.float32), load_oracle(folder, torch.bfloat16).cuda()
    decoder = load_decoder(folder, torch.bfloat16, "cuda")
    with torch.no_grad():
        want = torch.cat([exact(part[None]).logits[0] for part in ids.split(lengths)])
        theirs = torch.cat([rough(part[None].cuda()).logits[0] for part in ids.split(lengths)]).float().cpu()
        ours = decoder.logits(decoder.packed_hidden_states(ids.cuda(), Tree.of(lengths))).float().cpu()
    assert (ours - want).norm() <= 2 * (theirs - want).norm()


def test_float32_equals_the_cpu(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "qwen2")
    ids, lengths = torch.randint(3, 128, (43,)), (7, 1, 23, 12)
    logits = []
    with torch.no_grad():
        for device in ("cpu", "cuda"):
            adapter = LoraAdapter(load_decoder(folder, torch.float32, device), LoraSection(r=4), seed=0)
            hidden = adapter.decoder.packed_hidden_states(ids.to(device), Tree.of(lengths))
            logits.append(adapter.decoder.logits(hidden).cpu())
    assert (logits[0] - logits[1]).abs().max() < 1e-4
