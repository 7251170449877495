"""Counter-based random numbers: the noise of an action is a function of (key, env, step), not of who asks when.

Philox4x32-10 of Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC'11, doi:10.1145/2063384.2063405):
ten rounds of multiply and xor turn a 128-bit counter and a 64-bit key into four random words. There is no state:
whichever vectorizer, batch or process asks for the number of (env 5, step 1000) gets the same one, in any order, and
a resumed run needs only the step counts.

Counter layout: word 0 is the block of four numbers, word 1 the env id, words 2 and 3 the step, low word first.

numpy only: it is asked for once per rollout, before torch sees anything.
"""

from __future__ import annotations

import hashlib
import json
import operator

import numpy as np

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_WORD = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def philox4x32(counter: np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10: four random 32-bit words for every counter.

    Args:
        counter: uint64 [4, ...], each entry below 2³²: the counter's words along dim 0.
        key: 64 bits, the low word first in the paper's order.

    Returns:
        The words, uint64 [4, ...], each below 2³².
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = (product1 >> _WORD) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> _WORD) ^ c3 ^ np.uint64(k1)
        c1 = product1 & _LOW
        c3 = product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def uniform(key: int, env_id: np.ndarray, step: np.ndarray, dim: int) -> np.ndarray:
    """Uniform numbers strictly inside (0, 1), one row of `dim` for every (env, step).

    Number d of (key, env, step) does not depend on anything else, `dim` included: a longer row begins with the shorter
    one. Numbers are odd multiples of 2⁻²⁴: symmetric about ½, and exact in float32. (With one bit more, the largest
    would round to 1.)

    Args:
        key: 64 bits, from `stream_key`.
        env_id: integers [N] in [0, 2³²).
        step: integers, non-negative, [N] or [T, N] (or whatever broadcasts against `env_id`): env steps since the run
            began, never reset by an episode.
        dim: numbers per row, at least 1. In a multi-agent env ask for A · noise_dim and reshape.

    Returns:
        float32 [N, dim] or [T, N, dim].

    Raises:
        ValueError: a key, env id, step or dim out of range.
    """
    if not 0 <= key < 2**64:
        raise ValueError(f"key={key}: must fit in 64 bits; take it from stream_key")
    if dim < 1:
        raise ValueError(f"dim={dim}: must be at least 1")
    env, count = np.broadcast_arrays(_words(env_id, "env_id", bits=32), _words(step, "step", bits=64))
    num_blocks = -(-dim // 4)
    counter = np.empty((4, *env.shape, num_blocks), np.uint64)
    counter[0] = np.arange(num_blocks, dtype=np.uint64)
    counter[1] = env[..., None]
    counter[2] = (count & _LOW)[..., None]
    counter[3] = (count >> _WORD)[..., None]
    words = np.moveaxis(philox4x32(counter, key), 0, -1)
    numbers = words.reshape(*env.shape, 4 * num_blocks)[..., :dim] >> np.uint64(9)
    return (numbers.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def stream_key(seed: int, *role: str | int) -> int:
    """The 64-bit key of one random stream, from the run's seed and what the stream is for.

    Different roles give independent streams of the same run: `stream_key(seed, "act")`, `stream_key(seed, "eval", 3)`.

    Args:
        seed: the run's seed, non-negative.
        role: names and numbers; their order and their types count.

    Raises:
        ValueError: a negative seed.
        TypeError: a role that is neither text nor a whole number.
    """
    if seed < 0:
        raise ValueError(f"seed={seed}: must be at least 0")
    # JSON of the list, then a digest of fixed length: ("a", "bc") and ("ab", "c"), or 1 and "1", must not collide
    spelled = json.dumps([part if isinstance(part, str) else operator.index(part) for part in role])
    digest = hashlib.sha256(spelled.encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return int(np.random.SeedSequence(seed, spawn_key=words).generate_state(1, np.uint64)[0])


def _words(values: np.ndarray, name: str, bits: int) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} of dtype {values.dtype}: must be whole numbers")
    if values.size and (values.min() < 0 or int(values.max()) >= 2**bits):
        raise ValueError(f"{name} between {values.min()} and {values.max()}: must be in [0, 2^{bits})")
    return values.astype(np.uint64)
