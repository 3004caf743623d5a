"""Label-free validators against their definitions, written as loops."""

import math

import numpy as np
import pytest
import torch

from conftest import batch, build
from datasets.patches import PatchSampler, place
from utils.run.validators import entropy, information_maximisation, soft_neighbourhood_density, validate

LOGITS = 3 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def nats(p):
    return -sum(value * math.log(value) for value in p if value > 0)


PREDICTED = [softmax(row) for row in LOGITS.tolist()]


def test_entropy_by_loop():
    assert entropy(LOGITS) == pytest.approx(-sum(map(nats, PREDICTED)) / 9, rel=1e-12)


def test_information_maximisation_by_loop():
    mean = [sum(p[k] for p in PREDICTED) / 9 for k in range(4)]
    assert information_maximisation(LOGITS) == pytest.approx(nats(mean) - sum(map(nats, PREDICTED)) / 9, rel=1e-12)


def test_soft_neighbourhood_density_by_loop():
    def cosine(p, q):
        return sum(a * b for a, b in zip(p, q)) / math.sqrt(sum(a * a for a in p) * sum(b * b for b in q))

    density = [nats(softmax([cosine(p, q) / 0.05 for j, q in enumerate(PREDICTED) if j != i]))
               for i, p in enumerate(PREDICTED)]
    assert soft_neighbourhood_density(LOGITS) == pytest.approx(sum(density) / 9, rel=1e-12)


def test_known_values():
    sure = 1e4 * torch.eye(4, dtype=torch.float64).repeat(3, 1)             # four classes, three samples each
    assert entropy(sure) == 0 and information_maximisation(sure) == pytest.approx(math.log(4))
    assert soft_neighbourhood_density(sure) == pytest.approx(math.log(2), abs=1e-6)      # two neighbours each
    constant = sure[:1].repeat(12, 1)
    assert information_maximisation(constant) == pytest.approx(0, abs=1e-12)
    assert soft_neighbourhood_density(constant) == pytest.approx(math.log(11))
    assert entropy(torch.zeros(2, 4)) == pytest.approx(-math.log(4))
    with pytest.raises(ValueError, match="at least two"):
        soft_neighbourhood_density(sure[:1])


def test_a_method_is_judged_by_its_logits_and_the_record_says_what_it_uses():
    method = build(method="erm")
    method.update(*batch())
    cube = torch.rand(8, 9, 6, generator=torch.Generator().manual_seed(1)).numpy()
    centres = np.argwhere(np.ones((8, 9), bool))
    sampler = PatchSampler(place(cube, torch.device("cpu")), centres, np.zeros(72, np.int64), 5)
    logits = method.predict(sampler.patches(torch.arange(72))).double()
    found = validate(method, sampler)
    assert found == {"entropy": pytest.approx(entropy(logits)), "im": pytest.approx(information_maximisation(logits)),
                     "snd": pytest.approx(soft_neighbourhood_density(logits)), "uses": "unlabelled target"}
