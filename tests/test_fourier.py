"""Fourier components and progress measures, on tables and networks of which they are known."""

import json
import math
from dataclasses import astuple

import pytest
import torch
import torch.nn.functional as F

from loschmidt.errors import InvalidSetting, NonFinite
from loschmidt.models import OneLayerTransformer
from loschmidt.tasks import fourier, modular_addition
from loschmidt.tasks.fourier import BySum
from loschmidt.tasks.progress_measures import excluded, measures, restricted, score
from reference.adders import SquareMLP, ideal, lookup, sums

P = 31
CHANCE = math.log(P)


def train_of(p=P, share=0.6, seed=0):
    return fourier.mask(modular_addition(p, share, seed).train[0], p)


def noise(p=P, seed=0, width=None):
    return torch.randn(p * p, width or p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(value, tolerance=1e-9):
    return pytest.approx(value, abs=tolerance)


# -- components -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [3, 9, 31, 113])
def test_the_basis_is_orthonormal(p):
    f = fourier.basis(p)
    torch.testing.assert_close(f @ f.T, torch.eye(p, dtype=torch.float64), rtol=0, atol=1e-13)


def test_spectrum_is_that_of_numpy_and_keeps_the_power():
    w = noise(P, width=8)[:P]
    power = torch.fft.rfft(w, dim=0).abs().square().sum(1) * 2 / P
    torch.testing.assert_close(fourier.spectrum(w), power[1:])
    torch.testing.assert_close(fourier.spectrum(w).sum() + power[0] / 2, w.square().sum())
    torch.testing.assert_close(fourier.spectrum(w.roll(1, 0)), fourier.spectrum(w))


def test_components_keep_the_power_and_show_a_wave_where_it_is():
    z = noise()
    torch.testing.assert_close(fourier.components(z).square().sum(), z.square().sum())
    c = fourier.components(ideal(P, {4: 2.0})).square()
    assert c.sum().item() == near(4 * P**3 / 2)
    assert c[7:9, 7:9, 7:9].sum().item() == near(c.sum().item())  # cos and sin of frequency 4, on each axis
    f = fourier.basis(P)
    torch.testing.assert_close(
        fourier.components(z)[3, 8, 5], torch.einsum("abc,a,b,c", z.view(P, P, P), f[3], f[8], f[5])
    )


def test_gini_of_known_sizes():
    assert fourier.gini(torch.full((10,), 3.0)) == near(0)
    assert fourier.gini(torch.eye(10)[4]) == near(0.9)
    assert fourier.gini(torch.tensor([0.0, 5.0, 5.0, 0.0])) == near(0.5)
    assert fourier.gini(torch.tensor([3.0, 1.0])) == near(0.25)
    assert fourier.gini(torch.zeros(4)) == 0


# -- shares, keys, fits, held against the definitions written out -------------------------------------------


def projector(p, k):
    """u u^T + v v^T of arXiv 2301.05217, from products of cos and sin over a and over b."""
    f = fourier.basis(p)
    cos, sin = f[2 * k - 1], f[2 * k]
    u = (torch.outer(cos, cos) - torch.outer(sin, sin)).flatten() / 2**0.5
    v = (torch.outer(sin, cos) + torch.outer(cos, sin)).flatten() / 2**0.5
    return torch.outer(u, u) + torch.outer(v, v)


def test_on_the_whole_table_all_is_as_the_paper_has_it():
    p, keys = 11, (2, 5)
    z = noise(p) + ideal(p, {2: 1.0, 4: -0.5}) + torch.arange(p)  # noise, a rule, a bias
    centred = z - z.mean(1, keepdim=True)
    centred = centred - centred.mean(0)
    shares = [(projector(p, k) @ centred).square().sum() / centred.square().sum() for k in range(1, 6)]
    torch.testing.assert_close(BySum(z).explained(), torch.stack(shares))
    kept = sum(projector(p, k) @ z for k in keys)
    torch.testing.assert_close(restricted(z, keys), kept + z.mean(0))
    torch.testing.assert_close(excluded(z, keys), z - kept)
    waves = [ideal(p, {k: 1.0}) for k in range(1, 6)]
    torch.testing.assert_close(BySum(z).coefficients(), torch.stack([(z * w).sum() / (w * w).sum() for w in waves]))


def test_on_some_pairs_all_is_least_squares():
    p, keys = 11, (2, 5)
    z, pairs = noise(p) + ideal(p, {2: 1.0}), ~train_of(p, 0.5)
    f, answers = fourier.basis(p), sums(p)

    def fitted(rows, y):  # on `pairs`, evaluated everywhere
        x = f[rows].T[answers]
        return x @ torch.linalg.lstsq(x[pairs], y[pairs]).solution

    torch.testing.assert_close(restricted(z, keys, pairs), fitted([0, 3, 4, 9, 10], z))
    torch.testing.assert_close(excluded(z, keys, pairs) + restricted(z, keys, pairs), z + _constant(z, keys, pairs))
    centred = z - z.mean(1, keepdim=True)
    rest = [(centred - fitted([0, 2 * k - 1, 2 * k], centred))[pairs].square().sum() for k in range(1, 6)]
    all_of_it = (centred - fitted([0], centred))[pairs].square().sum()
    torch.testing.assert_close(BySum(z, pairs).explained(), 1 - torch.stack(rest) / all_of_it)
    waves = torch.stack([ideal(p, {k: 1.0})[pairs].flatten() for k in range(1, 6)], 1)
    solution = torch.linalg.lstsq(waves, z[pairs].reshape(-1, 1)).solution[:, 0]
    torch.testing.assert_close(BySum(z, pairs).coefficients(), solution)


def _constant(z, keys, pairs):
    return BySum(z, pairs).fit(keys)[0]


def test_loss_is_cross_entropy_and_tiny_losses_keep_their_digits():
    z, train = noise(), train_of()
    loss, accuracy = score(z, train)
    assert loss == near(F.cross_entropy(z[train], sums(P)[train]).item(), 1e-12)
    assert accuracy == (z.argmax(1) == sums(P))[train].double().mean().item()
    high = torch.zeros(P * P, P, dtype=torch.float64).scatter(1, sums(P)[:, None], 60.0)
    assert score(high)[0] == pytest.approx((P - 1) * math.exp(-60), rel=1e-9, abs=0)
    assert score(0 * z) == (near(CHANCE), near(1 / P))  # all tied


# -- what is known to add -----------------------------------------------------------------------------------


@pytest.mark.parametrize("waves_from", ["test", "all"])
def test_an_ideal_table_has_the_keys_it_was_made_of(waves_from):
    alpha = {3: 20.0, 7: 10.0, 11: 15.0}
    m = measures(ideal(P, alpha), train_of(), waves_from=waves_from)
    assert m.keys == (3, 7, 11)
    assert m.alpha == near([alpha.get(k, 0.0) for k in range(1, 16)])
    assert m.trig_share == near(1)
    assert m.gini == near(fourier.gini(torch.tensor(m.alpha)))
    assert astuple(m.restricted) == near(astuple(m.full)) and m.restricted.test_loss < 1e-4
    assert astuple(m.excluded) == (near(CHANCE), near(1 / P)) * 2
    if waves_from == "all":
        assert m.explained == near([alpha.get(k, 0.0) ** 2 / 725 for k in range(1, 16)])
    assert json.loads(json.dumps(m.to_dict()))["excluded"]["test_loss"] == m.excluded.test_loss


def test_a_frequency_is_key_from_half_of_an_even_share_on():
    for share, keys in ((0.9 / 30, (3,)), (1.1 / 30, (3, 7))):
        table = BySum(ideal(P, {3: (1 - share) ** 0.5, 7: share**0.5}))
        assert table.keys() == keys and table.keys(0.01) == (3, 7) and table.keys(0.5) == (3,)


def test_measures_are_scores_of_the_logits_kept_and_left():
    z, train = noise() + ideal(P, {3: 1.0}) + 0.3 * torch.arange(P), train_of()  # with a bias of answers
    m = measures(z, train, keys=(3, 5))
    for found, logits in ((m.restricted, restricted(z, (3, 5), ~train)), (m.excluded, excluded(z, (3, 5), ~train))):
        assert (*score(logits, train), *score(logits, ~train)) == near(astuple(found))


def test_a_key_taken_out_is_missed_and_the_others_are_kept():
    z = ideal(P, {3: 20.0, 7: 10.0, 11: 15.0})
    torch.testing.assert_close(restricted(z, [3, 11]), ideal(P, {3: 20.0, 11: 15.0}))
    torch.testing.assert_close(excluded(z, [7]), ideal(P, {3: 20.0, 11: 15.0}))
    rough = excluded(z, [7], ~train_of()) - ideal(P, {3: 20.0, 11: 15.0})  # found on pairs where waves overlap
    assert 1e-3 < rough.abs().max() / 35 < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frequencies", [range(1, 16), (2, 5, 13)], ids=["all", "three"])
def test_the_analytic_network(frequencies, dtype):
    net = SquareMLP(P, frequencies, scale=30.0).to(dtype)
    z = fourier.whole_table(net, P)
    torch.testing.assert_close(z, ideal(P, dict.fromkeys(frequencies, 30.0)), rtol=0, atol=3e4 * torch.finfo(dtype).eps)
    m = measures(z, train_of())
    assert m.keys == tuple(frequencies)
    assert m.gini == near(1 - len(frequencies) / 15, 1e-3)
    assert m.trig_share > 1 - 1e-9
    assert m.restricted.test_loss < 1e-3 and m.restricted.test_accuracy == 1
    assert m.excluded.train_loss == near(CHANCE, 1e-3) and m.excluded.test_accuracy == near(1 / P)
    power = fourier.spectrum(net.first)
    assert (power > 1e-3 * power.max()).nonzero().flatten().tolist() == [k - 1 for k in frequencies]


def test_the_analytic_network_with_random_phases_is_nearly_that():
    z = fourier.whole_table(SquareMLP(P, range(1, 16), random=200, scale=3.0), P)
    m = measures(z, train_of())
    assert m.keys == tuple(range(1, 16))
    assert 0.9 < m.trig_share < 1 and m.gini < 0.1
    assert m.full.test_accuracy == 1 and m.restricted.test_loss < 1e-6
    assert m.excluded.train_loss > CHANCE and m.excluded.train_accuracy < 0.2


# -- what does not add ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "share"), [(13, 0.8), (31, 0.6)])
@pytest.mark.parametrize("kind", ["noise", "network"])
def test_random_logits_have_no_keys(kind, p, share):
    for seed in range(40):
        z = noise(p, seed) if kind == "noise" else fourier.whole_table(OneLayerTransformer(p, seed=seed), p)
        test = ~train_of(p, share, seed)
        assert BySum(z).keys() == ()
        assert fourier.gini(BySum(z).explained().sqrt()) < (0.15 if kind == "noise" else 0.35)
        if kind == "noise" or p > 13:  # where three dozen pairs are left, a few networks in a hundred pass
            assert BySum(z, test).keys() == ()


def test_noise_explains_what_its_distribution_says():
    test = ~train_of()
    shares = torch.stack([BySum(noise(seed=seed), test).explained() for seed in range(60)])
    n = int(test.sum())
    assert shares.mean().item() == pytest.approx(2 / (n - 1), rel=0.05)
    spread = math.sqrt(2 / (n - 1) / ((P - 1) * (n - 1) / 2))
    assert shares.std().item() == pytest.approx(spread, rel=0.15)


def test_what_is_known_by_heart_is_no_rule():
    train = train_of()
    z = lookup(P, train, height=20.0)
    m = measures(z, train)
    assert m.keys == () and m.trig_share < 0.01
    assert m.full.train_accuracy == 1 and m.full.test_accuracy < 0.1
    assert m.restricted.train_accuracy < 0.1 and m.restricted.test_loss > CHANCE
    assert m.excluded.train_loss == near(m.full.train_loss)  # nothing was taken away
    asked = measures(z, train, keys=range(1, 16))  # even with all frequencies kept, and all taken away
    assert asked.restricted.train_accuracy < 0.1 and asked.restricted.test_accuracy < 0.1
    assert asked.excluded.train_loss < 1e-3 and asked.excluded.train_accuracy == 1


def test_by_the_whole_table_it_leaks_into_test_pairs():
    train = train_of()
    m = measures(lookup(P, train, height=20.0, noise=0.0), train, keys=(3, 7, 11), waves_from="all")
    assert m.full.test_accuracy == near(1 / P) and m.restricted.test_accuracy > 0.8


def test_a_rule_beside_facts_known_by_heart_is_told_apart():
    train = train_of()
    m = measures(lookup(P, train, height=20.0, noise=3.0) + ideal(P, dict.fromkeys((3, 8, 14), 2.0)), train)
    assert m.keys == (3, 8, 14)
    assert m.full.test_accuracy < 0.5 and m.restricted.test_accuracy > 0.9  # the rule is outvoted, and still there
    assert m.excluded.train_accuracy == 1 and m.excluded.test_accuracy < 0.1


def test_a_rule_read_out_wrongly_is_seen_and_is_wrong():
    m = measures(ideal(P, {3: 20.0, 8: 20.0}, shift=1), train_of())
    assert m.keys == (3, 8) and m.restricted.test_accuracy == 0 and m.restricted.test_loss > CHANCE


@pytest.mark.parametrize("waves_from", ["test", "all"])
def test_what_softmax_does_not_see_moves_nothing(waves_from):
    z = noise() + ideal(P, {3: 1.0})
    before, after = (measures(x, train_of(), waves_from=waves_from) for x in (z, z + 50 * noise(seed=1)[:, :1]))
    for name in ("full", "restricted", "excluded"):
        assert astuple(getattr(before, name)) == near(astuple(getattr(after, name)))
    assert before.explained == near(after.explained) and before.alpha == near(after.alpha)
    assert before.trig_share == near(after.trig_share)


# -- few pairs, and refusals --------------------------------------------------------------------------------


def test_few_pairs_fit_as_far_as_they_go():
    pairs = torch.zeros(P * P, dtype=torch.bool)
    pairs[:5] = True  # sums 0 to 4, once each
    z = noise()
    torch.testing.assert_close(restricted(z, range(1, 16), pairs)[pairs], z[pairs])
    assert BySum(z, pairs).explained().isfinite().all()
    pairs[1:5] = False  # a single one
    assert BySum(z, pairs).explained().count_nonzero() == 0 and BySum(z, pairs).keys() == ()


def test_the_same_bits_again_and_no_trace():
    task = modular_addition(13)
    task.model.train()
    before = [x.clone() for x in task.model.parameters()], torch.get_rng_state()
    first, second = (measures(fourier.whole_table(task.model, 13), train_of(13)) for _ in range(2))
    assert first == second
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(task.model.parameters(), before[0], strict=True))
    assert torch.equal(before[1], torch.get_rng_state()) and task.model.training
    pairs, answers = task.test
    assert first.full.test_loss == near(F.cross_entropy(task.model(pairs), answers).item(), 1e-5)
    assert first.full.test_accuracy == near(task.accuracy(task.model, task.test))


GOOD = noise(), train_of()


@pytest.mark.parametrize(
    ("logits", "train", "options", "word"),
    [
        (GOOD[0][:-1], GOOD[1], {}, "logits"),
        (noise(4), train_of(5)[:16], {}, "p: 4"),
        (GOOD[0], GOOD[1].long(), {}, "pairs"),
        (GOOD[0], GOOD[1][:-1], {}, "pairs"),
        (GOOD[0], torch.ones_like(GOOD[1]), {}, "none"),
        (GOOD[0], torch.zeros_like(GOOD[1]), {}, "none"),
        (GOOD[0], GOOD[1], {"keys": [0]}, "keys"),
        (GOOD[0], GOOD[1], {"keys": [3, 16]}, "16"),
        (GOOD[0], GOOD[1], {"threshold": 0.0}, "threshold"),
        (GOOD[0], GOOD[1], {"threshold": 1.0}, "threshold"),
        (GOOD[0], GOOD[1], {"waves_from": "train"}, "waves_from"),
    ],
)
def test_what_cannot_be_is_refused(logits, train, options, word):
    with pytest.raises(InvalidSetting, match=word) as refused:
        measures(logits, train, **options)
    assert refused.value.remedy


def test_logits_that_blew_up_are_refused():
    for bad in (math.nan, math.inf):
        z = noise()
        z[5, 3] = bad
        with pytest.raises(NonFinite):
            measures(z, train_of())
