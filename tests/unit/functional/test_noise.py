import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parl_cli.functional.noise import philox4x32, stream_key, uniform

# Random123, tests/kat_vectors, `philox4x32 10`: counter, key, output
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_matches_the_random123_vectors(counter, key, expected):
    low, high = words(key)
    blocks = np.array(words(counter), np.uint64)[:, None].repeat(3, axis=1)
    answer = philox4x32(blocks, low | high << 32)
    assert answer.shape == (4, 3)
    for column in range(3):
        assert answer[:, column].tolist() == words(expected)


def philox_scalar(counter, key):
    """Plain Python integers, one counter: the paper's figure 2."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(1, 9))
def test_uniform_is_the_documented_function_of_key_env_and_step(key, env, step, dim):
    row = uniform(key, np.array([env]), np.array([step], np.uint64), dim)
    assert row.shape == (1, dim)
    for d in range(dim):
        block = philox_scalar((d // 4, env, step % 2**32, step >> 32), (key % 2**32, key >> 32))
        assert row[0, d] == ((block[d % 4] >> 9) + 0.5) / 2**23


def test_a_number_does_not_depend_on_batching_order_or_dim():
    key, env, step = stream_key(1, "act"), np.arange(5), np.arange(7)[:, None].repeat(5, axis=1)
    whole = uniform(key, env, step, 6)
    assert whole.shape == (7, 5, 6)
    for t in range(7):
        np.testing.assert_array_equal(uniform(key, env, step[t], 6), whole[t])
        np.testing.assert_array_equal(uniform(key, env[:1], step[t, :1], 3), whole[t, :1, :3])
    order = np.array([3, 0, 4])
    np.testing.assert_array_equal(uniform(key, env[order], step[:, order], 6), whole[:, order])


def test_envs_out_of_step_get_their_own_numbers():
    whole = uniform(9, np.arange(3), np.arange(10)[:, None], 1)
    ragged = uniform(9, np.arange(3), np.array([7, 0, 4]), 1)
    np.testing.assert_array_equal(ragged, whole[[7, 0, 4], [0, 1, 2]])


def test_key_env_step_and_dimension_all_matter():
    numbers = np.concatenate(
        [
            uniform(key, np.arange(4), np.arange(8)[:, None] + 2**32 * high, 6).ravel()
            for key in (1, 2)
            for high in (0, 1)
        ]
    )
    assert len(np.unique(numbers)) == numbers.size


def test_uniform_is_float32_and_strictly_inside_the_unit_interval(monkeypatch):
    for word, expected in ((0, 2.0**-24), (2**32 - 1, 1.0 - 2.0**-24)):
        monkeypatch.setattr(
            "parl_cli.functional.noise.philox4x32", lambda counter, key, word=word: np.full_like(counter, word)
        )
        number = uniform(0, np.array([0]), np.array([0]), 1)
        assert number.dtype == np.float32
        assert number.item() == expected


def test_uniform_has_the_moments_of_a_uniform():
    numbers = uniform(stream_key(7, "test"), np.arange(64), np.arange(512)[:, None], 2).astype(np.float64)
    size = numbers.size
    assert abs(numbers.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / size)
    assert abs(numbers.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / size)
    # independent across steps, envs and dimensions: correlations of the order of 1/sqrt(size)
    x = numbers - 0.5
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1])):
        assert abs((a * b).mean() * 12) < 4 / np.sqrt(a.size)
    counts = np.histogram(numbers, bins=64, range=(0, 1))[0]
    chi_square = ((counts - size / 64) ** 2 / (size / 64)).sum()
    assert abs(chi_square - 63) < 4 * np.sqrt(2 * 63)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, [0], [0], 1), "key=-1"),
        ((2**64, [0], [0], 1), "key="),
        ((0, [-1], [0], 1), "env_id between -1"),
        ((0, [2**32], [0], 1), "env_id between 4294967296"),
        ((0, [0], [-3], 1), "step between -3"),
        ((0, [0.5], [0], 1), "env_id of dtype float64"),
        ((0, [0], [0], 0), "dim=0"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, message):
    key, env, step, dim = arguments
    with pytest.raises(ValueError, match=message):
        uniform(key, np.array(env), np.array(step), dim)


def test_stream_keys_differ_by_seed_and_by_every_part_of_the_role():
    roles = [
        (0, ()),
        (1, ()),
        (2**40, ()),
        (1, ("act",)),
        (1, ("act", 0)),
        (1, ("act", 1)),
        (1, ("act", "1")),
        (1, (1, "act")),
        (1, ("a", "ct")),
        (1, ("ac", "t")),
        (1, ("act", 2**32)),
        (1, ("act", 0, 1)),
    ]
    keys = [stream_key(seed, *role) for seed, role in roles]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_stream_key_is_the_same_for_ever():
    recorded = 11737451420286571727  # by this function: another number would silently change every seeded run
    assert stream_key(1, "act", 0) == recorded
    assert stream_key(1, "act", np.int64(0)) == recorded


def test_stream_key_refuses_a_negative_seed_and_a_fractional_role():
    with pytest.raises(ValueError, match="seed=-1"):
        stream_key(-1, "act")
    with pytest.raises(TypeError):
        stream_key(1, 0.5)
