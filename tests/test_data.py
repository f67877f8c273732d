"""Batches: a pure function of (dataset, seed, step)."""

import json
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from loschmidt.data import Schedule, permutation
from loschmidt.errors import InvalidSetting

N = 23
X, Y = torch.arange(N * 3).view(N, 3).float(), torch.arange(N)


class Items(Dataset):
    """A map-style dataset which draws from all three global generators."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"x": X[i], "id": i, "noise": torch.rand(()) + np.random.rand() + random.random()}


def add_noise(sample, rng):
    x, y = sample
    x += torch.from_numpy(rng.random(3)).float()  # in place: must not reach the dataset
    return x, y


SCHEDULES = {
    "full batch": Schedule((X, Y)),
    "tensor": Schedule(X, 5, seed=1),
    "columns": Schedule({"x": X, "y": Y}, 5, seed=1),
    "without": Schedule((X, Y), 5, seed=1, without=[0, 7, 22]),
    "replacement": Schedule((X, Y), 5, seed=1, replacement=True),
    "augmented": Schedule((X, Y), 5, seed=1, augment=add_noise),
    "items": Schedule(Items(), 5, seed=1),
    "list of samples": Schedule(list(zip(X, Y, strict=True)), 5, seed=1),
}


def flat(batch):
    return [batch] if torch.is_tensor(batch) else list(batch.values() if isinstance(batch, dict) else batch)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_batch_is_a_pure_function_of_the_step(schedule):
    steps = range(-7, 12)
    first = [flat(schedule.batch(step)) for step in steps]
    torch.rand(3), np.random.rand(3), random.random()
    for step in reversed(steps):
        again = flat(schedule.batch(step))
        assert all(torch.equal(a, b) for a, b in zip(first[step + 7], again, strict=True))
    assert torch.equal(X, torch.arange(N * 3).view(N, 3).float())


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_global_generators_stay_where_they_were(schedule):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    schedule.batch(3), schedule.fingerprint()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


@pytest.mark.parametrize("epoch", [-2, -1, 0, 1])
def test_an_epoch_visits_every_sample_once_and_keeps_the_short_batch(epoch):
    schedule = SCHEDULES["columns"]
    assert schedule.steps_per_epoch == 5
    batches = [schedule.ids(5 * epoch + k) for k in range(5)]
    assert [len(b) for b in batches] == [5, 5, 5, 5, 3]
    ids = torch.cat(batches).tolist()
    assert sorted(ids) == list(range(N)) != ids
    assert ids != torch.cat([schedule.ids(5 * epoch + 5 + k) for k in range(5)]).tolist()


def test_the_order_is_keyed_by_the_seed_and_stays_the_same_for_ever():
    assert not torch.equal(permutation(N, 0), permutation(N, 1))
    assert permutation(8, "epoch", 0, 0).tolist() == [1, 3, 2, 4, 0, 5, 6, 7]


def test_batches_have_the_structure_of_the_dataset():
    x, y = Schedule((X, Y), 4).batch(2)
    assert torch.equal(x, X[y])
    batch = Schedule({"x": X, "y": Y}, 4).batch(2)
    assert torch.equal(batch["x"], X[batch["y"]])
    assert torch.equal(Schedule(X, 4).batch(2), x)
    x, y = Schedule(TensorDataset(X, Y), 4).batch(2)
    assert torch.equal(x, X[y])
    batch = Schedule(Items(), 4).batch(2)
    assert torch.equal(batch["x"], X[batch["id"]]) and torch.equal(batch["id"], y)


def test_the_full_batch_is_the_dataset_itself():
    schedule = Schedule((X, Y))
    assert schedule.batch(0)[0] is X and schedule.batch(-5)[1] is Y and schedule.steps_per_epoch == 1
    assert schedule.ids(7).tolist() == list(range(N))
    assert schedule.without_ids([1]).batch(3)[1].tolist() == [0, *range(2, N)]


@pytest.mark.parametrize("kind", ["columns", "replacement", "augmented", "items"])
def test_without_takes_samples_out_and_leaves_all_else_in_place(kind):
    schedule, out = SCHEDULES[kind], [3, 11]
    less = schedule.without_ids(torch.tensor(out))
    for step in range(-5, 10):
        ids = schedule.ids(step)
        keep = ~torch.isin(ids, torch.tensor(out))
        assert torch.equal(less.ids(step), ids[keep])
        for a, b in zip(flat(schedule.batch(step)), flat(less.batch(step)), strict=True):
            assert torch.equal(a[keep], b)
    assert less.without_ids([4]).without == (3, 4, 11)


def test_an_empty_batch_is_none():
    schedule = Schedule((X, Y), 4)
    less = schedule.without_ids(schedule.ids(2))
    assert less.batch(2) is None and less.ids(2).shape == (0,) and less.ids(2).dtype == torch.int64
    assert torch.equal(less.batch(1)[1], schedule.batch(1)[1])


def test_replacement_draws_independently_at_every_step():
    schedule = Schedule(X, 1000, replacement=True)
    assert schedule.steps_per_epoch == 1
    counts = torch.bincount(schedule.ids(0), minlength=N)
    assert counts.sum() == 1000 and counts.min() > 15 and counts.max() < 90
    assert not torch.equal(schedule.ids(0), schedule.ids(1))


def test_augmentation_is_keyed_by_epoch_and_id():
    def noise(augmented, step):
        x, y = augmented.batch(step)
        return {int(i): row for i, row in zip(y, x - X[y], strict=True)}

    small, large = Schedule((X, Y), 5, augment=add_noise), Schedule((X, Y), 9, augment=add_noise)
    first = [noise(small, step) for step in range(5)]
    by_id = {i: row for part in first for i, row in part.items()}
    assert all(torch.equal(by_id[i], row) for step in range(3) for i, row in noise(large, step).items())
    assert all(not torch.equal(by_id[i], row) for i, row in noise(small, 5).items())
    assert len({tuple(row.tolist()) for row in by_id.values()}) == N


def test_the_fingerprint_notices_what_changed():
    schedule = Schedule((X, Y), 5, seed=1)
    recorded = json.loads(json.dumps(schedule.fingerprint()))
    assert schedule.differs(recorded) == []

    edited = X.clone()
    sampled = int(list(recorded["items"])[7])
    edited[sampled, 1] += 1e-6
    (sentence,) = Schedule((edited, Y), 5, seed=1).differs(recorded)
    assert f"sample {sampled} " in sentence

    changes = {
        "number of samples": Schedule((X[:-1], Y[:-1]), 5, seed=1),
        "dtypes": Schedule((X.double(), Y), 5, seed=1),
        "batch_size": Schedule((X, Y), 6, seed=1),
        "seed": Schedule((X, Y), 5, seed=2),
        "without": schedule.without_ids([2]),
        "augmented": Schedule((X, Y), 5, seed=1, augment=add_noise),
    }
    for word, changed in changes.items():
        assert any(word in sentence for sentence in changed.differs(recorded))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("word", "arguments", "settings"),
    [
        ("no samples", (torch.empty(0, 3),), {}),
        ("equally long", ((X, Y[:-1]),), {}),
        ("map-style", (Stream(),), {}),
        ("map-style", (7,), {}),
        ("torch.as_tensor", ((X.numpy(), Y.numpy()),), {}),
        ("cannot be put into a batch", ([object()],), {}),
        ("batch_size", (X, 0), {}),
        ("batch_size", (X, 2.5), {}),
        ("batch_size", (X,), {"replacement": True}),
        ("without", (X, 5), {"without": [N]}),
        ("without", (X, 5), {"without": [-1]}),
    ],
)
def test_refused_with_a_remedy(word, arguments, settings):
    with pytest.raises(InvalidSetting, match=word) as error:
        Schedule(*arguments, **settings)
    assert error.value.remedy
