"""Models and tasks: the same function as the plain one, the same bits from the same seed."""

import pytest
import torch
import torch.nn.functional as F

from loschmidt.data import Schedule
from loschmidt.errors import InvalidSetting
from loschmidt.models import OneLayerTransformer
from loschmidt.tasks import TASKS


def plain(model, pairs):
    """The one-layer transformer as a textbook has it: all positions, causal attention by torch."""
    tokens = F.pad(pairs, (0, 1), value=model.p)
    x = model.token[tokens] + model.position
    n, length, width = x.shape

    def split(weight):
        return (x @ weight.T).view(n, length, model.heads, -1).transpose(1, 2)

    attention = F.scaled_dot_product_attention(split(model.query), split(model.key), split(model.value), is_causal=True)
    x = x + attention.transpose(1, 2).reshape(n, length, width) @ model.out.T
    x = x + F.relu(x @ model.up.T + model.up_bias) @ model.down.T + model.down_bias
    return x[:, -1] @ model.unembed.T


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_the_fast_transformer_is_the_plain_one(dtype, tolerance):
    task = TASKS["modular-addition"](dtype=dtype)
    pairs, sums = task.train
    for bias in (task.model.up_bias, task.model.down_bias):
        torch.nn.init.normal_(bias)  # 0 would hide a bias in the wrong place
    outputs = [f(task.model, pairs) for f in (lambda model, x: model(x), plain)]
    torch.testing.assert_close(*outputs, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(F.cross_entropy(y, sums), list(task.model.parameters())) for y in outputs]
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance)


def test_the_model_comes_from_its_seed_alone():
    before = torch.get_rng_state()
    models = [OneLayerTransformer(seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert sum(x.numel() for x in models[0].parameters()) == 31_056
    same, other = (
        [torch.equal(a, b) for a, b in zip(models[0].parameters(), m.parameters(), strict=True)] for m in models[1:]
    )
    assert all(same) and other.count(True) == 2  # the two biases, which start at 0
    rounded = OneLayerTransformer(seed=0, dtype=torch.float64).float()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), rounded.parameters(), strict=True))


def test_weights_have_the_width_they_should():
    model = OneLayerTransformer()
    for weight in (w for w in model.parameters() if w.dim() == 2):
        assert weight.std().item() * weight.shape[-1] ** 0.5 == pytest.approx(1, abs=0.12)


def test_the_split_is_complete_disjoint_and_keyed_by_the_seed():
    make = TASKS["modular-addition"]
    task, again, other = make(seed=3), make(seed=3), make(seed=4)
    train, test = ({tuple(pair) for pair in part[0].tolist()} for part in (task.train, task.test))
    assert len(train) == 577 and len(test) == 384 and len(train | test) == 961
    assert torch.equal(task.train[0], again.train[0]) and not torch.equal(task.train[0], other.train[0])
    for pairs, sums in (task.train, task.test):
        assert pairs.shape == (len(sums), 2) and torch.equal(pairs.sum(1) % 31, sums)


def test_a_task_can_be_learned_from_and_looked_at():
    task = TASKS["modular-addition"](p=7, train_fraction=0.8)
    data = Schedule(task.train)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    assert task.accuracy(task.model, task.train) < 0.5
    for step in range(60):
        optimizer.zero_grad()
        task.loss(task.model, data.batch(step)).backward()
        optimizer.step()
    assert task.accuracy(task.model, task.train) == 1.0
    assert 0 <= task.accuracy(task.model, task.test) <= 1


@pytest.mark.parametrize("fraction", [0, 1, 1.5])
def test_a_split_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(InvalidSetting, match="train_fraction"):
        TASKS["modular-addition"](train_fraction=fraction)
