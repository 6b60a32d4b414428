"""Nothing is squashed, every picture finds the bucket that loses least, and the crop stays inside."""

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from limner.pictures.fit import MOST_ASPECT, buckets_for, enlargement, fit_to, nearest_bucket

SIDES = st.integers(1, 6000)
GRIDS = st.sampled_from([(64, 16), (256, 64), (512, 64), (768, 64), (1024, 64)])


@given(SIDES, SIDES, GRIDS, st.floats(0, 1), st.floats(0, 1))
def test_every_picture_covers_its_bucket_and_keeps_its_shape(width, height, grid, x, y):
    bucket = nearest_bucket((width, height), buckets_for(*grid))
    fit = fit_to((width, height), bucket, (x, y))
    assert fit.size == bucket
    assert 0 <= fit.left <= fit.resized[0] - bucket[0]
    assert 0 <= fit.top <= fit.resized[1] - bucket[1]
    assert fit.resized[0] == bucket[0] or fit.resized[1] == bucket[1]
    scale = enlargement((width, height), bucket)
    assert abs(fit.resized[0] - width * scale) <= 1
    assert abs(fit.resized[1] - height * scale) <= 1


@given(GRIDS)
def test_the_grid(grid):
    resolution, step = grid
    buckets = buckets_for(resolution, step)
    assert (resolution, resolution) in buckets
    assert len(set(buckets)) == len(buckets)
    for width, height in buckets:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert 1 / MOST_ASPECT <= width / height <= MOST_ASPECT
        assert (height, width) in buckets


@given(SIDES, SIDES, GRIDS)
def test_no_other_bucket_loses_less(width, height, grid):
    buckets = buckets_for(*grid)
    chosen = nearest_bucket((width, height), buckets)

    def lost(bucket):
        covered = min(width / bucket[0], height / bucket[1])
        return 1 - bucket[0] * bucket[1] * covered**2 / (width * height)

    assert lost(chosen) <= min(map(lost, buckets)) + 0.0101


def test_ordinary_photos_lose_little():
    buckets = buckets_for(512, 64)
    for size in ((4000, 3000), (3000, 4000), (6000, 4000), (1920, 1080), (1080, 1080)):
        assert fit_to(size, nearest_bucket(size, buckets)).lost_share < 0.07, size


def test_the_crop_follows_the_centre_that_is_asked_for():
    image = Image.new("RGB", (300, 100), "blue")
    image.paste("red", (200, 0, 300, 100))
    right = fit_to((300, 100), (64, 64), (0.9, 0.5)).apply(image)
    left = fit_to((300, 100), (64, 64), (0.1, 0.5)).apply(image)
    assert right.getpixel((32, 32)) == (255, 0, 0)
    assert left.getpixel((32, 32)) == (0, 0, 255)
    assert right.size == left.size == (64, 64)
