import numpy as np
import pytest
import torch

from parl_cli.actors import weights
from parl_cli.actors.weights import SharedWeights, WeightsReader, WeightsWriter, weights_layout
from parl_cli.types import Snapshot

SHAPES = {"w": (3, 5), "b": (5,), "scalar": (), "count": (2,)}
DTYPES = {"w": torch.float32, "b": torch.float64, "scalar": torch.float32, "count": torch.int64}


def state(value):
    return {name: torch.full(shape, value, dtype=DTYPES[name]) for name, shape in SHAPES.items()}


class Sink:
    """A policy that remembers what was loaded into it."""

    def __init__(self):
        self.loaded = []

    def load_state_dict(self, tensors):
        self.loaded.append({name: tensor.clone() for name, tensor in tensors.items()})

    @property
    def values(self):
        return [{float(v) for tensor in loaded.values() for v in tensor.ravel()} for loaded in self.loaded]


def pair():
    layout = weights_layout(state(0))
    buffer = np.zeros(SharedWeights.size(layout), np.uint8)
    return WeightsWriter(SharedWeights(buffer, layout)), WeightsReader(SharedWeights(buffer, layout)), Sink()


def test_a_reader_gets_every_tensor_as_it_was_published():
    writer, reader, sink = pair()
    published = {
        name: torch.arange(tensor.numel()).reshape(tensor.shape).to(tensor) for name, tensor in state(0).items()
    }
    writer.publish(Snapshot(7, 0, published))
    assert reader.load_into(sink) == 7
    [loaded] = sink.loaded
    assert loaded.keys() == published.keys()
    for name, tensor in published.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_the_newest_counts_and_is_loaded_once():
    writer, reader, sink = pair()
    for version in range(5):
        writer.publish(Snapshot(version, 0, state(version)))
    assert reader.load_into(sink) == 4
    assert reader.load_into(sink) == 4
    assert sink.values == [{4.0}]


def test_weights_that_were_set_by_hand_are_news_under_the_same_version():
    writer, reader, sink = pair()
    writer.publish(Snapshot(3, 0, state(1)))
    reader.load_into(sink)
    writer.publish(Snapshot(3, 0, state(2)))
    assert reader.load_into(sink) == 3
    assert sink.values == [{1.0}, {2.0}]


@pytest.mark.parametrize("publications", [1, 2, 3])
def test_a_reader_that_is_overtaken_gets_one_version_whole(monkeypatch, publications):
    writer, reader, sink = pair()
    writer.publish(Snapshot(1, 0, state(1)))
    copyto, left = np.copyto, [publications]

    def overtaken(target, source):
        half = len(source) // 2
        copyto(target[:half], source[:half])
        while left[0]:
            left[0] -= 1
            version = publications - left[0] + 1
            writer.publish(Snapshot(version, 0, state(version)))
        copyto(target[half:], source[half:])

    monkeypatch.setattr(weights.np, "copyto", overtaken)
    version = reader.load_into(sink)
    assert sink.values == [{float(version)}]
    assert version == (1 if publications == 1 else publications + 1)


def test_a_writer_that_dies_half_way_leaves_the_weights_before(monkeypatch):
    writer, reader, sink = pair()
    writer.publish(Snapshot(1, 0, state(1)))
    with pytest.raises(KeyError):
        writer.publish(Snapshot(2, 0, {"w": state(2)["w"]}))
    assert reader.load_into(sink) == 1
    assert sink.values == [{1.0}]
