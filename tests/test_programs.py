"""Random programs of random ops come back bit for bit, and do not when one bit was flipped."""

import pytest

from reference.programs import check, random_program

PROGRAMS, CHUNKS = 4_000, 4


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_programs_return(chunk):
    each = PROGRAMS // CHUNKS
    failed, events = check(range(chunk * each, (chunk + 1) * each))
    assert failed == []
    rare = {name: count for name, count in events.items() if count < each // 100}
    assert not rare, "these programs no longer do what they are random for"


def test_one_flipped_bit_is_noticed():
    assert True not in [random_program(seed).returns(damage=seed) for seed in range(400)]
