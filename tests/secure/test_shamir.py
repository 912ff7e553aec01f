"""Secret sharing against the polynomial itself: enough shares give it, fewer fit every secret."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.errors import SecurityError
from fedkron.secure import shamir
from fedkron.secure.shamir import PRIME, SIZE, random_secret, recover, split


def is_probably_prime(number: int) -> bool:
    """Miller-Rabin with the first 20 primes."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for witness in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71):
        power = pow(witness, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def test_the_field_has_a_prime_number_of_elements_just_below_32_bytes() -> None:
    assert is_probably_prime(PRIME)
    assert not any(is_probably_prime(number) for number in range(PRIME + 2, 2**256, 2))


@settings(max_examples=30, deadline=None)
@given(
    secret=st.one_of(st.integers(0, PRIME - 1), st.sampled_from([0, 1, PRIME - 1])),
    count=st.integers(1, 7),
    data=st.data(),
)
def test_any_threshold_shares_recover_the_secret(secret: int, count: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, count))
    shares = dict(enumerate(split(secret.to_bytes(SIZE), threshold, count), 1))
    for chosen in combinations(shares, threshold):
        assert recover({x: shares[x] for x in chosen}, threshold) == secret.to_bytes(SIZE)
    assert recover(shares, threshold) == secret.to_bytes(SIZE)


@settings(max_examples=20, deadline=None)
@given(threshold=st.integers(2, 5), others=st.integers(0, PRIME - 1))
def test_one_share_less_fits_every_secret(threshold: int, others: int) -> None:
    shares = dict(enumerate(split(random_secret(), threshold, threshold), 1))
    known = {x: shares[x] for x in range(1, threshold)}
    # Some last share leads to any secret that one may wish for: what the value at 0 has to be fixes it.
    forged = recover_last(known, others, threshold)
    assert recover({**known, threshold: forged}, threshold) == others.to_bytes(SIZE)


def recover_last(known: dict[int, bytes], secret: int, x: int) -> bytes:
    """The share x of the polynomial through the known shares and (0, secret), by Newton's differences."""
    points = [(0, secret), *((at, int.from_bytes(share)) for at, share in known.items())]
    table = [y for _, y in points]
    for order in range(1, len(points)):
        for i in range(len(points) - 1, order - 1, -1):
            gap = points[i][0] - points[i - order][0]
            table[i] = (table[i] - table[i - 1]) * pow(gap, -1, PRIME) % PRIME
    value = 0
    for (at, _), coefficient in zip(reversed(points), reversed(table), strict=True):
        value = (value * (x - at) + coefficient) % PRIME
    return value.to_bytes(SIZE)


def test_every_other_coefficient_is_drawn_anew_from_the_operating_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []
    randbelow = shamir.secrets.randbelow

    def watched(bound: int) -> int:
        assert bound == PRIME
        drawn.append(randbelow(bound))
        return drawn[-1]

    monkeypatch.setattr(shamir.secrets, "randbelow", watched)
    shares = split(bytes(SIZE), 4, 6)
    assert len(set(drawn)) == 3
    for x, share in enumerate(shares, 1):
        assert int.from_bytes(share) == sum(c * x**power for power, c in enumerate(drawn, 1)) % PRIME


def test_a_false_share_gives_another_secret() -> None:
    secret = random_secret()
    shares = dict(enumerate(split(secret, 3, 5), 1))
    assert recover({1: shares[1], 2: shares[2], 3: random_secret()}, 3) != secret
    assert recover({1: shares[1], 2: shares[2], 4: shares[3]}, 3) != secret


def test_what_cannot_be_a_share_is_refused() -> None:
    shares = dict(enumerate(split(random_secret(), 3, 5), 1))
    for wrong, said in (
        ({x: shares[x] for x in (1, 2)}, "2 shares .* it takes 3"),
        ({**shares, 1: b"short"}, "5 bytes"),
        ({**shares, 1: PRIME.to_bytes(SIZE)}, "not an element"),
        ({0: shares[1], 1: shares[1], 2: shares[2]}, "numbered from 1"),
    ):
        with pytest.raises(SecurityError, match=said):
            recover(wrong, 3)
    for threshold, count in ((0, 3), (4, 3)):
        with pytest.raises(SecurityError, match="threshold"):
            split(random_secret(), threshold, count)
    with pytest.raises(SecurityError, match="not an element"):
        split(b"\xff" * SIZE, 1, 1)
