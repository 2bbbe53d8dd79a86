import pytest
import torch

from registry.strategies.base import WeightStep
from registry.strategies.bilevel import first_order, second_order

LR, MOMENTUM, DECAY = 0.3, 0.9, 0.05
NEVER = 1e9  # a clip that no gradient reaches


class Small:
    """A smooth supernet of one hidden layer: each unit mixes tanh, sin and identity by a softmax of alphas."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        self.weights = [draw(6, 4).requires_grad_(), draw(3, 6).requires_grad_(), draw(3).requires_grad_()]
        self.alphas = [draw(6, 3).requires_grad_(), draw(3).requires_grad_()]
        self.velocity = [draw(6, 4), draw(3, 6), draw(3)]
        self.halves = [(draw(20, 4), torch.randint(0, 3, (20,), generator=generator)) for _ in range(2)]

    def loss(self, half, weights=None):
        first, second, bias = weights or self.weights
        mixing, scale = self.alphas[0].softmax(1), torch.sigmoid(self.alphas[1])
        x, labels = self.halves[half]
        hidden = x @ first.T
        hidden = mixing[:, 0] * hidden.tanh() + mixing[:, 1] * hidden.sin() + mixing[:, 2] * hidden
        return torch.nn.functional.cross_entropy(scale * (hidden @ second.T) + bias, labels)

    def train(self):
        return self.loss(0)

    def val(self):
        return self.loss(1)

    def exact(self, velocity):
        """d_alpha L_val(w - lr (momentum v + grad_w L_train + decay w), alpha), by autograd through the step."""
        gradients = torch.autograd.grad(self.train(), self.weights, create_graph=True)
        moved = [
            w - LR * ((MOMENTUM * v if v is not None else 0) + g + DECAY * w)
            for w, g, v in zip(self.weights, gradients, velocity, strict=True)
        ]
        loss = self.loss(1, moved)
        return torch.autograd.grad(loss, self.alphas), loss.item()

    def approximate(self, velocity, clip=NEVER, **options):
        step = WeightStep(LR, MOMENTUM, DECAY, clip, velocity)
        return second_order(self.train, self.val, [self.weights], self.alphas, step, **options)


def relative_error(got, expected):
    flat = lambda parts: torch.cat([part.flatten() for part in parts])
    return ((flat(got) - flat(expected)).norm() / flat(expected).norm()).item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_hypergradient_agrees_with_autograd_and_better_the_smaller_the_radius(seed):
    net = Small(seed)
    exact, loss = net.exact(net.velocity)
    errors = []
    for radius in (0.3, 0.03, 0.003):
        got, value = net.approximate(net.velocity, radius=radius)
        errors.append(relative_error(got, exact))
        assert value == pytest.approx(loss, rel=1e-12)
    default = relative_error(net.approximate(net.velocity)[0], exact)
    assert default < 1e-2
    assert errors[1] < errors[0] / 30 and errors[2] < errors[1] / 30, errors  # a central difference: squared
    assert errors[2] < default < errors[0]


def test_the_mixed_derivative_matters_here():
    """Else the test above would not see a wrong factor before it."""
    net = Small()
    exact, _ = net.exact(net.velocity)
    assert relative_error(first_order(net.val, net.alphas)[0], exact) > 0.1
    gradients = torch.autograd.grad(net.train(), net.weights)
    moved = [
        (w - LR * (MOMENTUM * v + g + DECAY * w)).detach()
        for w, g, v in zip(net.weights, gradients, net.velocity, strict=True)
    ]
    without = torch.autograd.grad(net.loss(1, moved), net.alphas)  # at w', but as if w' did not depend on alpha
    assert relative_error(without, exact) > 0.05


def test_before_the_first_step_there_is_no_velocity():
    net = Small()
    exact, _ = net.exact([None] * 3)
    assert relative_error(net.approximate([None] * 3)[0], exact) < 1e-2
    assert relative_error(net.approximate(net.velocity)[0], exact) > 1e-2, "the velocity matters"


def test_the_weights_are_restored_bit_for_bit():
    net = Small()
    before = [weight.detach().clone() for weight in net.weights]
    net.approximate(net.velocity)
    for weight, value in zip(net.weights, before, strict=True):
        assert torch.equal(weight.detach().view(torch.int64), value.view(torch.int64))
        assert weight.grad is None


@pytest.mark.parametrize("calls", [1, 2])
def test_the_weights_are_restored_after_an_error_in_a_trial(calls):
    net, before, left = Small(), [weight.detach().clone() for weight in Small().weights], [calls]

    def failing():
        left[0] -= 1
        if left[0] < 0:
            raise FloatingPointError("bad")
        return net.train()

    with pytest.raises(FloatingPointError):
        second_order(failing, net.val, [net.weights], net.alphas, WeightStep(LR, MOMENTUM, DECAY, NEVER, net.velocity))
    assert all(torch.equal(weight, value) for weight, value in zip(net.weights, before, strict=True))


def test_the_first_order_is_the_plain_gradient():
    net = Small()
    got, loss = first_order(net.val, net.alphas)
    assert loss == net.val().item()
    assert all(map(torch.equal, got, torch.autograd.grad(net.val(), net.alphas)))


def test_with_a_learning_rate_of_zero_the_second_order_is_the_first():
    net = Small()
    got, loss = second_order(
        net.train, net.val, [net.weights], net.alphas, WeightStep(0.0, MOMENTUM, DECAY, NEVER, net.velocity)
    )
    expected, value = first_order(net.val, net.alphas)
    assert loss == value and all(map(torch.equal, got, expected))


def test_weights_that_a_loss_does_not_reach_are_fine():
    """A head that only the other level trains."""
    net = Small()
    apart = torch.ones(2, dtype=torch.float64, requires_grad=True)
    got, _ = second_order(
        lambda: net.train() + apart.square().sum(),
        net.val,
        [net.weights, [apart]],
        net.alphas,
        WeightStep(LR, MOMENTUM, DECAY, NEVER, [*net.velocity, None]),
    )
    assert relative_error(got, net.exact(net.velocity)[0]) < 1e-2


def test_a_validation_loss_that_is_flat_in_the_weights_gives_finite_gradients():
    net = Small()
    got, _ = second_order(
        net.train,
        lambda: sum(a.square().sum() for a in net.alphas),
        [net.weights],
        net.alphas,
        WeightStep(LR, 0, 0, NEVER, net.velocity),
    )
    for gradient, alphas in zip(got, net.alphas, strict=True):
        torch.testing.assert_close(gradient, 2 * alphas.detach())


# Clipping


def by_difference(net, clip, groups, h=1e-6):
    """d L_val(w'(alpha)) / d alpha by central differences of the whole step, torch's own clipping included."""

    def moved_loss():
        gradients = torch.autograd.grad(net.train(), net.weights)
        moved, at = [], 0
        for size in groups:
            part = [torch.zeros_like(w).requires_grad_() for w in net.weights[at : at + size]]
            for parameter, gradient in zip(part, gradients[at : at + size], strict=True):
                parameter.grad = gradient.clone()
            torch.nn.utils.clip_grad_norm_(part, clip)
            rest = zip(part, net.weights[at : at + size], net.velocity[at : at + size], strict=True)
            moved += [(w - LR * (MOMENTUM * v + p.grad + DECAY * w)).detach() for p, w, v in rest]
            at += size
        return net.loss(1, moved).item()

    found = []
    for alphas in net.alphas:
        gradient = torch.zeros_like(alphas)
        for place in range(alphas.numel()):
            flat, before = alphas.data.view(-1), alphas.data.view(-1)[place].item()
            ends = []
            for sign in (1, -1):
                flat[place] = before + sign * h
                ends.append(moved_loss())
            flat[place] = before
            gradient.view(-1)[place] = (ends[0] - ends[1]) / (2 * h)
        found.append(gradient)
    return found


@pytest.mark.parametrize("clip", [0.02, 0.2, NEVER], ids=["far above the clip", "above the clip", "below the clip"])
@pytest.mark.parametrize("groups", [[3], [2, 1]], ids=["one group", "two groups"])
def test_the_hypergradient_is_that_of_the_clipped_step(clip, groups):
    net = Small()
    cut = [net.weights[: groups[0]], net.weights[groups[0] :]]
    step = WeightStep(LR, MOMENTUM, DECAY, clip, net.velocity)
    got, _ = second_order(net.train, net.val, [part for part in cut if part], net.alphas, step, radius=1e-3)
    assert relative_error(got, by_difference(net, clip, groups)) < 1e-4
    if clip < NEVER:
        assert relative_error(net.approximate(net.velocity, radius=1e-3)[0], by_difference(net, clip, groups)) > 1e-2


def test_the_trial_step_is_the_step_that_sgd_then_takes():
    net, seen = Small(), []
    parameters = [torch.nn.Parameter(w.detach().clone()) for w in net.weights]
    optimizer = torch.optim.SGD(parameters, LR, momentum=MOMENTUM, weight_decay=DECAY)
    for parameter, velocity in zip(parameters, net.velocity, strict=True):
        optimizer.state[parameter]["momentum_buffer"] = velocity.clone()
    for parameter, gradient in zip(parameters, torch.autograd.grad(net.train(), net.weights), strict=True):
        parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.1)
    optimizer.step()

    def val():
        seen.extend(w.detach().clone() for w in net.weights)
        return net.val()

    second_order(net.train, val, [net.weights], net.alphas, WeightStep(LR, MOMENTUM, DECAY, 0.1, net.velocity))
    assert norm > 0.1
    for trial, real in zip(seen, parameters, strict=True):
        torch.testing.assert_close(trial, real.detach(), rtol=1e-12, atol=1e-14)
