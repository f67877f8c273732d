"""Models and tasks: the same function as the plain one, the same bits from the same seed, there and back."""

import json
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import loschmidt as lo
from loschmidt.data import Schedule
from loschmidt.echo import default_plan, legs
from loschmidt.echo.picture import draw
from loschmidt.echo.table import markdown
from loschmidt.errors import InvalidSetting
from loschmidt.exact.digest import digest
from loschmidt.models import CNN, GPT, OneLayerTransformer
from loschmidt.tasks import TASKS
from loschmidt.tasks.text import MODULES, SYMBOLS


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


# -- text and digits -------------------------------------------------------------------------------


def bits(task):
    tensors = lambda x: [x] if torch.is_tensor(x) else list(x)  # noqa: E731
    return digest([*task.model.state_dict().values(), *tensors(task.train), *tensors(task.test)])


def look(task, traj):
    with traj.evaluating() as model, torch.no_grad():
        return task.loss(model, task.probe[1] if task.probe else task.test).item()


def start(name):
    task = TASKS[name]()
    opt = lo.optim.AdamW(task.model.parameters(), lr=3e-3)
    batches = Schedule(task.train, 8, seed=1, augment=task.augment)
    return task, lo.Trajectory(task.model, opt, task.loss, batches, digest_every=10)


@pytest.mark.parametrize("name", ["text", "digits"])
def test_a_task_is_a_pure_function_of_its_settings(name):
    make, before = TASKS[name], torch.get_rng_state()
    one, again, other = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert bits(one) == bits(again) != bits(other) and one.settings == again.settings != other.settings
    assert TASKS[name](dtype=torch.float64).model.state_dict().keys() == one.model.state_dict().keys()


def test_text_is_the_library_and_is_split_by_position():
    task = TASKS["text"](context=32)
    train, test = (torch.cat([part[:1, 0], part[:, 1:].flatten()]).tolist() for part in (task.train, task.test))
    assert task.train.dtype == torch.uint8 and task.train.shape[1] == 33
    assert torch.equal(task.train[:-1, -1], task.train[1:, 0])  # no character is left out
    folder = Path(sysconfig.get_path("stdlib"))
    source = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)
    known = "".join(c if c in SYMBOLS else SYMBOLS[-1] for c in source)
    text = lambda symbols: "".join(SYMBOLS[i] for i in symbols)  # noqa: E731
    cut = round(0.9 * len(known))
    assert len(SYMBOLS) == 97 and len(source) == task.settings["characters"]
    assert known[:cut].startswith(text(train)) and cut - len(train) < 32
    assert known[cut:].startswith(text(test)) and len(known) - cut - len(test) < 32
    assert 2.5 < task.settings["unigram_entropy"] < 3.5
    for windows, part in zip(task.probe, (task.train, task.test), strict=True):
        assert {tuple(w) for w in windows.tolist()} <= {tuple(w) for w in part.tolist()}


def test_digits_are_split_without_overlap():
    task = TASKS["digits"](seed=2)
    (images, labels), (test_images, test_labels) = task.train, task.test
    assert images.shape == (1438, 1, 8, 8) and test_images.shape == (359, 1, 8, 8)
    assert images.min() == 0 and images.max() == 1 and labels.unique().tolist() == list(range(10))
    from sklearn.datasets import load_digits

    read = load_digits()
    assert sorted([*images.mul(16).flatten(1).long().tolist(), *test_images.mul(16).flatten(1).long().tolist()]) == (
        sorted(read.data.astype(int).tolist())
    )
    assert torch.cat([labels, test_labels]).bincount().tolist() == torch.from_numpy(read.target).bincount().tolist()


def test_augmentation_depends_on_seed_epoch_and_id_alone():
    task = TASKS["digits"]()
    data, small, other = (Schedule(task.train, b, seed=s, augment=task.augment) for b, s in ((64, 0), (50, 0), (64, 1)))
    before = digest(task.train)

    def first_epoch(schedule, epoch=0):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        ids = torch.cat([schedule.ids(step) for step in steps])
        return torch.cat([schedule.batch(step)[0] for step in steps])[ids.argsort()]

    images = first_epoch(data)
    assert torch.equal(images, first_epoch(small))  # other batches, other order of calls
    assert not torch.equal(images, first_epoch(other)) and not torch.equal(images, first_epoch(data, 1))
    assert digest(task.train) == before

    shifted = F.pad(task.train[0], (2, 2, 2, 2))
    apart = torch.stack(
        [
            (images - shifted[..., 2 - y : 10 - y, 2 - x : 10 - x]).square().mean((1, 2, 3))
            for y in (-1, 0, 1)
            for x in (-1, 0, 1)
        ]
    )
    assert apart.min(0).values.mean().sqrt() == pytest.approx(0.05, rel=0.03)  # one of nine shifts explains each image
    assert apart.argmin(0).bincount(minlength=9).min() > 100


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_gpt_is_causal_and_is_the_plain_one(dtype, tolerance):
    model = GPT(11, context=9, width=16, layers=2, heads=2, seed=1, dtype=dtype).eval()
    x = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 5] = (x[:, 5] + 1) % 11
    logits, others = model(x), model(changed)
    assert torch.equal(logits[:, :5], others[:, :5]) and not torch.equal(logits[:, 5:], others[:, 5:])

    y = model.token[x] + model.position
    for layer in model.layers:
        norm = F.layer_norm(y, (16,)) * layer.gain_attention
        query, key, value = ((norm @ w.T).view(3, 9, 2, 8).transpose(1, 2) for w in layer.query_key_value.split(16))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        y = y + attended.transpose(1, 2).reshape(3, 9, 16) @ layer.out.T
        norm = F.layer_norm(y, (16,)) * layer.gain_mlp
        y = y + F.gelu(norm @ layer.up.T + layer.up_bias) @ layer.down.T + layer.down_bias
    plain = (F.layer_norm(y, (16,)) * model.gain) @ model.token.T
    torch.testing.assert_close(logits, plain, rtol=tolerance, atol=tolerance)


def test_sizes_are_as_documented():
    assert sum(p.numel() for p in GPT(97).parameters()) == 109_568
    assert sum(p.numel() for p in CNN().parameters()) == 14_458
    with pytest.raises(InvalidSetting, match="heads"):
        GPT(97, width=10, heads=4)


@pytest.mark.parametrize("name", ["text", "digits"])
def test_a_task_goes_there_and_back_and_a_flipped_bit_does_not(name):
    task, traj = start(name)
    before = look(task, traj)
    lo.testing.assert_reversible(lambda: traj, 30)
    assert look(task, traj) < before


@pytest.mark.parametrize("name", ["text", "digits"])
def test_echo_takes_the_task(name):
    plan = default_plan(name, ("ECD", "SGD", "AdamW", "Adam", "BBI", "ECDq1"))
    assert [leg.batch_size for leg in plan] == [TASKS[name]().batch_size] * 6
    assert default_plan(name, ("sgd",), batch_size=5)[0].batch_size == 5


@pytest.mark.parametrize(
    ("name", "optimizer"), [("text", "ECD"), ("digits", "ECD"), ("digits", "BBI"), ("digits", "ECDq1")]
)
def test_echo_takes_the_task_there_and_back(name, optimizer, tmp_path):
    (leg,) = default_plan(name, (optimizer,), steps=4, batch_size=4)
    run = {}
    for job in ("out", "back", "perturbed"):
        run |= legs.JOBS[job](leg, tmp_path, lambda done, total: None)
    assert run["end_digest"] == run["start_digest"] != run["turn_digest"] and run["differing_bits"] == 0
    assert run["task_settings"] == TASKS[name]().settings and run["batch_size"] == 4
    assert run["energy"]["largest_change"] > 0 and run["perturbed"]["reached_step"] == 0
    assert run["returned"] == legs._summary(run["looks_out"][0])
    draw(run, tmp_path / "echo.png")
    assert (tmp_path / "echo.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["text", "digits"])
def test_docs_show_the_recorded_echo(name):
    root = Path(__file__).parents[1]
    results = json.loads((root / f"benchmarks/results/echo-{name}.json").read_text())
    assert all(run["exact"] for run in results["runs"])
    assert markdown(results["runs"]) in (root / "docs/tasks.md").read_text()


@pytest.mark.parametrize("optimizer", ["ECD", "BBI", "ECDq1"])
def test_floats_see_the_same_dropout_and_augmentation_both_ways(optimizer, tmp_path):
    (leg,) = default_plan("digits", (optimizer,), steps=6, batch_size=8)
    assert legs.floats(leg, tmp_path, lambda done, total: None)["float_return_error"] < 1e-6


def test_a_perturbed_look_has_the_statistics_of_its_own_weights():
    task, traj = start("digits")
    traj.seek(3)
    before, drawn = traj.digest(), torch.get_rng_state()
    with traj.evaluating() as model, torch.no_grad():
        legs._measure_statistics(model, task)
        measured = model(task.train[0])
        assert not any(m.training for m in model.modules())
        for norm in model.norms:
            norm.train()
        torch.testing.assert_close(measured, model(task.train[0]), rtol=1e-3, atol=1e-3)
    assert traj.digest() == before and torch.equal(drawn, torch.get_rng_state())
    assert all(norm.momentum == 0.1 and norm.training for norm in task.model.norms)


def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for refused in (TASKS["digits"], lambda: default_plan("digits")):
        with pytest.raises(InvalidSetting, match=r"pip install 'loschmidt\[data\]'"):
            refused()


def test_settings_without_meaning_are_refused(monkeypatch):
    for name, options, word in (
        ("text", {"context": 0}, "context"),
        ("text", {"context": 10**7}, "context"),
        ("digits", {"train_fraction": 1}, "train_fraction"),
        ("digits", {"dtype": torch.bfloat16}, "dtype"),
    ):
        with pytest.raises(InvalidSetting, match=word):
            TASKS[name](**options)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "nowhere")
    with pytest.raises(InvalidSetting, match="library"):
        TASKS["text"]()
