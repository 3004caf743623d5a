"""Random streams: independent, reproducible, restorable."""

import torch

from model.seeding import PURPOSES, Streams

CPU = torch.device("cpu")


def draw(streams, purpose):
    generator = getattr(streams, purpose)
    return torch.rand(4, generator=generator).tolist() if isinstance(generator, torch.Generator) \
        else generator.random(4).tolist()


def test_streams_differ_by_purpose_and_seed_and_repeat():
    first = [draw(Streams(1, CPU), purpose) for purpose in PURPOSES]
    assert first == [draw(Streams(1, CPU), purpose) for purpose in PURPOSES]
    assert len({tuple(numbers) for numbers in first}) == len(PURPOSES)
    assert all(a != b for a, b in zip(first, [draw(Streams(2, CPU), purpose) for purpose in PURPOSES]))


def test_one_purpose_does_not_disturb_another():
    used, fresh = Streams(1, CPU), Streams(1, CPU)
    for _ in range(5):
        draw(used, "noise")
    assert draw(used, "mixing") == draw(fresh, "mixing") and draw(used, "batches") == draw(fresh, "batches")


def test_state_goes_on_where_it_stopped():
    streams, other = Streams(1, CPU), Streams(9, CPU)
    for purpose in PURPOSES:
        draw(streams, purpose)
    other.load_state_dict(streams.state_dict())
    assert all(draw(streams, purpose) == draw(other, purpose) for purpose in PURPOSES)
