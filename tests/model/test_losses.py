"""The loss terms against independent loops and closed forms."""

import math

import numpy as np
import pytest
import torch

from model.losses import (info_nce, js_consistency, kl_consistency, mutual_information, mutual_information_sum,
                          released_consistency)
from model.mixing import draw_lambda, mix


def test_kl_is_zero_for_equal_logits_and_positive_otherwise():
    rng = torch.Generator().manual_seed(0)
    p, q = torch.randn(50, 7, generator=rng), torch.randn(50, 7, generator=rng)
    assert kl_consistency(p, p).abs() < 1e-7
    assert all(kl_consistency(p[i:i + 1], q[i:i + 1]) > 0 for i in range(50))


def test_kl_against_its_definition():
    p, q = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    a, b = p.softmax(1).numpy(), q.softmax(1).numpy()
    assert kl_consistency(p, q).item() == pytest.approx((a * np.log(a / b)).sum() / 4, rel=1e-12)


def test_kl_has_finite_gradients_at_extreme_logits():
    p = torch.tensor([[1e4, -1e4]], requires_grad=True)
    q = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    kl_consistency(p, q).backward()
    assert p.grad.isfinite().all() and q.grad.isfinite().all()


def test_js_of_worked_examples():
    """Of (1/2, 1/2) and (1/4, 3/4): mean (3/8, 5/8); of two certain and opposite answers: log 2, its largest value."""
    fair, odd = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    expected = (math.log(4 / 3) + math.log(4 / 5) + math.log(2 / 3) / 2 + 3 * math.log(6 / 5) / 2) / 4
    assert js_consistency(fair, odd).item() == pytest.approx(expected, rel=1e-12)
    assert js_consistency(odd, fair).item() == pytest.approx(expected, rel=1e-12)
    assert js_consistency(torch.cat([fair, fair]), torch.cat([odd, fair])).item() == pytest.approx(expected / 2)
    assert js_consistency(1000 * odd, -1000 * odd).item() == pytest.approx(math.log(2))
    assert js_consistency(odd, odd).item() == pytest.approx(0, abs=1e-15)


def test_released_consistency_against_a_loop():
    p, q = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    a, b = p.softmax(1).numpy(), q.softmax(1).numpy()
    expected = np.mean([[b[i, k] * (math.log(b[i, k]) - a[i, k]) for k in range(3)] for i in range(4)])
    assert released_consistency(p, q).item() == pytest.approx(expected, rel=1e-12)
    assert expected < 0


def test_released_consistency_survives_a_probability_of_zero():
    p = torch.zeros(1, 2, requires_grad=True)
    q = torch.tensor([[200.0, -200.0]], requires_grad=True)
    released_consistency(p, q).backward()
    assert q.softmax(1)[0, 1] == 0
    assert p.grad.isfinite().all() and q.grad.isfinite().all()


def loop_info_nce(z, z_prime, temperature):
    views = np.concatenate([z, z_prime])
    n, total = len(z), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        logits = np.array([views[i] @ views[k] / temperature for k in range(2 * n) if k != i])
        total += np.log(np.exp(logits).sum()) - views[i] @ views[j] / temperature
    return total / (2 * n)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_info_nce_against_a_loop(n):
    rng = np.random.default_rng(n)
    z, z_prime = rng.normal(size=(n, 4)), rng.normal(size=(n, 4))
    ours = info_nce(torch.from_numpy(z), torch.from_numpy(z_prime), 0.7)
    assert ours.item() == pytest.approx(loop_info_nce(z, z_prime, 0.7), rel=1e-12, abs=1e-12)


def test_info_nce_of_identical_views_is_the_logarithm_of_their_number():
    z = torch.ones(5, 3, dtype=torch.float64)
    assert info_nce(z, z, 0.07).item() == pytest.approx(math.log(2 * 5 - 1), rel=1e-12)


def test_info_nce_of_orthogonal_samples_with_equal_views():
    n, temperature = 4, 0.5
    z = torch.eye(n, dtype=torch.float64)
    expected = math.log(1 + (2 * n - 2) * math.exp(-1 / temperature))
    assert info_nce(z, z, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_info_nce_stays_finite_at_a_million():
    z = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    loss = info_nce(z, z * 1.01, 0.07)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()


def test_terms_are_made_where_their_features_are():
    z = torch.ones(2, 3)
    with torch.device("meta"):
        assert info_nce(z, z, 0.5).item() == pytest.approx(math.log(3))
        assert mutual_information_sum([torch.stack([z, z])], 0.5, False).item() == pytest.approx(math.log(3))


def test_mutual_information_is_the_mean_over_layers_and_may_normalise():
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    c, d = torch.randn(3, 9), torch.randn(3, 9)
    raw = mutual_information([a, c], [b, d], 0.5, normalise=False)
    torch.testing.assert_close(raw, (info_nce(a, b, 0.5) + info_nce(c, d, 0.5)) / 2)
    cosine = mutual_information([a, c], [b, d], 0.5, normalise=True)
    one, other = torch.tensor([[7.0], [1.0], [0.2]]), torch.tensor([[1.0], [3.0], [9.0]])     # lengths of the samples
    torch.testing.assert_close(cosine, mutual_information([one * a, c], [other * b, one * d], 0.5, normalise=True))
    assert not torch.allclose(cosine, raw)


def test_mutual_information_refuses_feature_lists_of_different_length():
    with pytest.raises(ValueError):
        mutual_information([torch.ones(2, 2)], [], 0.5, normalise=False)


def test_mixing_at_its_ends():
    generated, source = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    assert torch.equal(mix(generated, source, 0.0), source)
    assert torch.equal(mix(generated, source, 1.0), generated)


def test_mixing_with_a_share_of_each_sample():
    generated, source = torch.full((2, 3, 5, 5), 4.0), torch.full((2, 3, 5, 5), 2.0)
    mixed = mix(generated, source, torch.tensor([0.25, 1.0], dtype=torch.float64))
    assert mixed.dtype == torch.float32 and (mixed[0] == 2.5).all() and (mixed[1] == 4).all()
    assert (mix(generated, source, torch.tensor(0.5)) == 3).all()


def test_lambda_is_one_number_or_one_for_each_sample():
    assert np.ndim(draw_lambda(np.random.default_rng(0), 0.6)) == 0
    drawn = draw_lambda(np.random.default_rng(0), 0.6, 3)
    assert drawn.shape == (3,) and len(set(drawn)) == 3 and (0 < drawn).all() and (drawn < 1).all()


def test_lambda_follows_its_beta_law():
    rng = np.random.default_rng(0)
    draws = np.array([draw_lambda(rng, 0.6) for _ in range(20000)])
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(draws.var() - 0.25 / 2.2) < 0.005          # 1 / (4 (2β + 1))
