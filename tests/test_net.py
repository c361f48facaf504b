"""The network: its scan, its rounding, and windows that continue one another."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from lmcodec.errors import ConfigError
from lmcodec.train import net as net_module
from lmcodec.train.loss import cross_entropy, nats_of
from lmcodec.train.net import SCALE_RANGE, Net, WeightRounding, round_to, rounded
from lmcodec.train.net_config import NetConfig
from lmcodec.train.optim import orthogonalise
from lmcodec.train.scan import (
    linear_scan,
    scan_loop,
    scan_loop_backward,
    scan_rounded,
    scan_triton,
    scan_triton_backward,
    triton,
)

SMALL = NetConfig(vocab_size=300, dim=32, n_layer=2, recurrent=24, mlp=40, shift=True)


def make_net(config: NetConfig = SMALL, quantise: bool = True) -> Net:
    net = Net(config, seed=3)
    net.quantise(quantise, WeightRounding(63 if quantise else 0))
    return net


def make_input(config: NetConfig, n_position: int, n_lane: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randint(0, config.vocab_size, (n_position, n_lane), generator=generator, dtype=torch.int32)
    begins = torch.zeros(n_position, n_lane, dtype=torch.bool)
    begins[0] = True
    begins[n_position // 3, 0] = True
    inputs[begins] = config.bos
    return inputs, begins


def test_scan_gradient_is_that_of_the_loop() -> None:
    torch.manual_seed(1)
    a = torch.rand(9, 3, 5, dtype=torch.float64, requires_grad=True)
    v = torch.randn(9, 3, 5, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (a, v, h0))


def test_rounded_scan_stays_within_its_rounding() -> None:
    torch.manual_seed(9)
    a, v, h0 = torch.rand(200, 2, 8), torch.randn(200, 2, 8), torch.zeros(2, 8)
    step = 2.0**-17
    rounded = scan_rounded(a, v, h0, step)
    assert torch.equal((rounded / step).round() * step, rounded)
    # Every step adds at most half a step of error, which decays with a < 1.
    bound = 0.5 * step / (1 - a.max()) + 1e-5
    assert (rounded - scan_loop(a, v, h0)).abs().max() <= bound


@pytest.mark.skipif(not torch.cuda.is_available() or triton is None, reason="needs CUDA and Triton")
@pytest.mark.parametrize(("n_position", "n_lane", "width"), [(1, 1, 1), (7, 3, 65), (512, 16, 320)])
def test_cuda_scan_equals_the_loop(n_position: int, n_lane: int, width: int) -> None:
    torch.manual_seed(2)
    a = torch.rand(n_position, n_lane, width)
    v, grad = torch.randn(2, n_position, n_lane, width)
    h0 = torch.randn(n_lane, width)
    fast = scan_triton(a.cuda(), v.cuda(), h0.cuda()).cpu()
    torch.testing.assert_close(fast, scan_loop(a, v, h0), rtol=1e-5, atol=1e-5)
    fast = scan_triton_backward(a.cuda(), grad.cuda()).cpu()
    torch.testing.assert_close(fast, scan_loop_backward(a, grad), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize("bigram", [0, 64])
def test_windows_continue_one_another(quantise: bool, bigram: int) -> None:
    config = NetConfig(vocab_size=300, dim=32, n_layer=2, recurrent=24, mlp=40, bigram=bigram)
    net = make_net(config, quantise)
    if bigram:
        torch.nn.init.normal_(net.bigram)
    inputs, begins = make_input(config, 30, 4)
    with torch.no_grad():
        whole, _ = net(inputs, begins, net.start(4))
        state = net.start(4)
        parts = []
        for i, j in ((0, 1), (1, 13), (13, 30)):
            part, state = net(inputs[i:j], begins[i:j], state)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-5 if not quantise else 0.13)


def test_nothing_passes_the_beginning_of_a_piece() -> None:
    net = make_net(quantise=False)
    inputs, begins = make_input(SMALL, 30, 1)
    with torch.no_grad():
        first, _ = net(inputs, begins, net.start(1))
        changed = inputs.clone()
        changed[1:10] = (changed[1:10] + 7) % 300
        second, _ = net(changed, begins, net.start(1))
        alone, _ = net(inputs[10:], begins[10:], net.start(1))
    assert not torch.equal(first[:10], second[:10])
    torch.testing.assert_close(first[10:], second[10:])
    torch.testing.assert_close(first[10:], alone, rtol=0, atol=1e-5)


def test_quantised_activations_are_integers_times_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        seen.append((x.detach(), w.detach()))
        return torch.nn.functional.linear(x, w, b)

    class Spied:
        linear = staticmethod(spy)
        embedding = staticmethod(torch.nn.functional.embedding)
        relu = staticmethod(torch.nn.functional.relu)

    monkeypatch.setattr(net_module, "F", Spied)
    inputs, begins = make_input(SMALL, 20, 3)
    hidden, _ = net(inputs, begins, net.start(3))
    net.logits(hidden)
    assert len(seen) == 4 * SMALL.n_layer + 1
    for x, w in seen:
        steps = x * 16  # every step is 2^-4 or 2^-3
        assert torch.equal(steps, steps.round())
        assert steps.abs().max() <= 2 * 127
        assert torch.equal(x.bfloat16().float(), x)
        scale = w.abs().amax(dim=1, keepdim=True) / 63
        torch.testing.assert_close(w / scale, (w / scale).round(), rtol=0, atol=1e-4)


def test_rounding_passes_gradients_inside_its_range_only() -> None:
    x = torch.tensor([-9.0, -1.03, 0.0, 0.49, 7.93, 9.0], requires_grad=True)
    y = round_to(x, 1 / 16, -127, 127)
    assert y.tolist() == [-127 / 16, -1.0, 0.0, 0.5, 127 / 16, 127 / 16]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_round_weight_levels() -> None:
    w = torch.randn(5, 40, requires_grad=True)
    for levels in (3, 7, 63):
        r = rounded(w, "w", WeightRounding(levels), torch.float32).detach()
        scale = w.detach().abs().amax(dim=1, keepdim=True) / levels
        assert (r / scale).abs().max() <= levels + 1e-3
        assert ((r - w).abs() <= scale / 2 + 1e-6).all()
    assert torch.equal(rounded(w, "w", WeightRounding(), torch.float32), w)


def test_round_weight_by_a_share_of_the_rows_root_mean_square() -> None:
    w = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(4))
    w[1] = 0
    w[2, 7] = 50.0
    rounding = WeightRounding(63, step=0.3, table_step=0.6)
    for name, step in (("layers.0.w_in", 0.3), ("w_head", 0.3), ("embed", 0.6)):
        scale = rounding.scale(w, name)
        rms = w.square().mean(dim=1).sqrt()
        assert torch.allclose(scale[[0, 3], 0], step * rms[[0, 3]])
        assert scale[1, 0] == scale.max() / SCALE_RANGE
        assert scale[2, 0] == 50.0 / 63  # the largest weight must fit
        integers = rounded(w, name, rounding, torch.float32) / scale
        assert integers.abs().max() <= 63.001
        assert torch.allclose(integers, integers.round(), atol=1e-3)


def test_gradients_of_the_fused_parts_equal_autograd() -> None:
    """The hand-written gradients of norm and shift against those of the same formulas under autograd."""
    torch.manual_seed(4)
    ops = net_module.Elementwise(compiled=False)
    x, y = torch.randn(2, 6, 3, 8, dtype=torch.float32)
    mix = torch.rand(8)
    last = torch.randn(3, 8)
    keep = torch.ones(6, 3, 1)
    keep[2, 1] = 0
    weight = torch.randn(6, 3, 8)

    def plain(x: torch.Tensor, y: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
        s = x + y
        q = s * torch.rsqrt(s.square().mean(dim=-1, keepdim=True) + net_module.NORM_EPS)
        before = torch.cat((last.unsqueeze(0), q[:-1])) * keep
        return ((q + mix * (before - q)) * weight).sum() + (s * weight).sum()

    def fused(x: torch.Tensor, y: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
        s, u, _ = ops.normalise(x, y, mix, last, keep, False, torch.float32)
        return (u * weight).sum() + (s * weight).sum()

    gradients = []
    for f in (plain, fused):
        arguments = [t.clone().requires_grad_() for t in (x, y, mix)]
        f(*arguments).backward()
        gradients.append([t.grad for t in arguments])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_cross_entropy_gradient_equals_autograd(share: float) -> None:
    torch.manual_seed(6)
    hidden, teacher_hidden = torch.randn(1100, 16), torch.randn(1100, 12)
    weight, bias = torch.randn(50, 16), torch.randn(50)
    teacher = (teacher_hidden, (torch.randn(50, 12), torch.randn(50)))
    target = torch.randint(0, 50, (1100,))
    gradients = []
    for fused in (False, True):
        h, w, b = (t.clone().requires_grad_() for t in (hidden, weight, bias))
        if fused:
            loss, nats = cross_entropy(h, (w, b), target, teacher=teacher if share else None, share=share)
            torch.testing.assert_close(nats, nats_of(hidden, (weight, bias), target), rtol=1e-4, atol=1e-5)
        else:
            logits = torch.nn.functional.linear(h, w, b)
            goal = (1 - share) * torch.nn.functional.one_hot(target, 50).float()
            teacher_logits = torch.nn.functional.linear(teacher_hidden, *teacher[1])
            goal += share * teacher_logits.softmax(-1)
            loss = -(goal * logits.log_softmax(-1)).sum(-1).mean()
        loss.backward()
        gradients.append([h.grad, w.grad, b.grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(7)
    for shape in ((40, 24), (24, 40)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), torch.float32))
        assert values.min() > 0.3
        assert values.max() < 1.5


def test_attention_sees_its_window_and_piece_only() -> None:
    config = NetConfig(vocab_size=300, dim=64, n_layer=1, recurrent=16, mlp=0, shift=False, attention=4)
    net = Net(config, seed=1)
    with torch.no_grad():
        net.layers[0].w_out.zero_()  # the recurrence aside: what remains of the past comes from attention
    inputs, begins = make_input(config, 24, 2)
    with torch.no_grad():
        whole, _ = net(inputs, begins, net.start(2))
        state = net.start(2)
        parts = []
        for i, j in ((0, 5), (5, 6), (6, 24)):
            part, state = net(inputs[i:j], begins[i:j], state)
            parts.append(part)
        changed = inputs.clone()
        changed[12] = (changed[12] + 1) % 300
        other, _ = net(changed, begins, net.start(2))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    differs = (other != whole).any(dim=-1).any(dim=-1)
    assert differs.nonzero().flatten().tolist() == [12, 13, 14, 15]
    with pytest.raises(ConfigError, match="integer definition"):
        net.quantise(True, WeightRounding(63))


def test_work_and_size_are_counted() -> None:
    net = make_net()
    matrices = [p for n, p in net.named_parameters() if n.split(".")[-1].startswith("w_")]
    assert sum(p.numel() for p in matrices) == SMALL.macs_per_token
    assert SMALL.n_weight == SMALL.macs_per_token + net.embed.numel()


@pytest.mark.parametrize(
    "changes", [{"dim": 8}, {"n_layer": 0}, {"mlp": 4000}, {"vocab_size": True}, {"shift": 1}, {"dim": 3.5}]
)
def test_shapes_out_of_range_are_refused(changes: dict[str, object]) -> None:
    arguments: dict[str, object] = {"vocab_size": 300, "dim": 32, "n_layer": 2, "recurrent": 24, "mlp": 40}
    with pytest.raises(ConfigError, match=next(iter(changes))):
        NetConfig(**(arguments | changes))  # type: ignore[arg-type]
