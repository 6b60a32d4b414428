"""Whatever bytes a file has: pixels or BadPicture, never anything else."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limner.pictures.decode import BadPicture, Decoded, decode_bytes
from tests.corpus.files import cases

GOOD = {name: case.data for name, case in cases().items() if not case.problem and len(case.data) < 20_000}


def read(data: bytes, shortest_px: int = 0) -> Decoded | None:
    """Return a decoded picture, None for a bad one; anything else is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return decode_bytes(data, max_megapixels=4.0, shortest_px=shortest_px)
        except BadPicture:
            return None


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(GOOD)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.sampled_from([0, 1]),
)
def test_damaged_files(name, changes, kept, shortest_px):
    data = bytearray(GOOD[name])
    for place, value in changes:
        data[int(place * len(data))] = value
    decoded = read(bytes(data[: max(1, int(len(data) * max(kept, 0.2)))]), shortest_px)
    if decoded is not None:
        assert decoded.rgb.mode == "RGB"
        assert decoded.rgb.width * decoded.rgb.height <= 4_000_000
        assert np.asarray(decoded.rgb).dtype == np.uint8


@given(
    st.binary(min_size=1, max_size=400),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF"]),
)
def test_any_bytes(data, start):
    read(start + data)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_decoding_twice_gives_the_same_pixels(name):
    first, second = read(GOOD[name]), read(GOOD[name])
    assert first is not None
    assert second is not None
    assert first.rgb.tobytes() == second.rgb.tobytes()
