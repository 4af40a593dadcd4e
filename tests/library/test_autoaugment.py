"""AutoAugment's policy and cutout, pixel by pixel against Pillow, and what `fit` gets of them."""

import functools

import keras
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import keras_ldam
from keras_ldam.sampling.augmentation import CIFAR10_POLICY

FILL = (10, 200, 90)
# Table 7 of the paper, in its own names.
POLICY = """
Invert .1 7 Contrast .2 6; Rotate .7 2 TranslateX .3 9; Sharpness .8 1 Sharpness .9 3;
ShearY .5 8 TranslateY .7 9; AutoContrast .5 8 Equalize .9 2; ShearY .2 7 Posterize .3 7;
Color .4 3 Brightness .6 7; Sharpness .3 9 Brightness .7 9; Equalize .6 5 Equalize .5 1;
Contrast .6 7 Sharpness .6 5; Color .7 7 TranslateX .5 8; Equalize .3 7 AutoContrast .4 8;
TranslateY .4 3 Sharpness .2 6; Brightness .9 6 Color .2 8; Solarize .5 2 Invert .0 3;
Equalize .2 0 AutoContrast .6 0; Equalize .2 8 Equalize .6 4; Color .9 9 Equalize .6 6;
AutoContrast .8 4 Solarize .2 8; Brightness .1 3 Color .7 0; Solarize .4 5 AutoContrast .9 3;
TranslateY .9 9 TranslateY .7 9; AutoContrast .9 2 Solarize .8 3; Equalize .8 8 Invert .1 3;
TranslateY .7 9 AutoContrast .9 1
"""
SUBPOLICIES = [row.split() for row in POLICY.split(";")]


def pictures(number, channels=3):
    """Noise, waves of little contrast, and flat images."""
    generator = np.random.default_rng(0)
    waves = np.sin(np.arange(32) * generator.uniform(0.1, 0.5, (number, 1, channels, 1)))
    images = 120 + 60 * (waves * np.swapaxes(waves, 1, 3)[:, :, :channels]).transpose(0, 3, 1, 2)
    images = np.broadcast_to(images, (number, 32, 32, channels)).copy()
    images[::3] = generator.uniform(0, 256, images[::3].shape)
    images[1] = 77
    return images.astype("uint8")


def by_pillow(name, magnitude, sign, image):
    """The operation at a magnitude of 0 to 9, in the direction of a sign."""
    strength = sign * magnitude / 9
    side = image.size[0]
    fill = FILL if image.mode == "RGB" else FILL[0]
    shift = int(strength * 150 / 331 * side)

    def moved(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=fill)

    enhancers = ("Color", "Contrast", "Brightness", "Sharpness")
    if name in enhancers:
        return getattr(ImageEnhance, name)(image).enhance(1 + sign * 0.1 * magnitude)
    return {
        "Invert": lambda: ImageOps.invert(image),
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Solarize": lambda: ImageOps.solarize(image, 256 * (1 - magnitude / 9)),
        "Posterize": lambda: ImageOps.posterize(image, 8 - round(4 * magnitude / 9)),
        "ShearY": lambda: moved(1, 0, 0, 0.3 * strength, 1, 0),
        "TranslateX": lambda: moved(1, 0, shift, 0, 1, 0),
        "TranslateY": lambda: moved(1, 0, 0, 0, 1, shift),
        "Rotate": lambda: image.rotate(30 * strength, fillcolor=fill),
    }[name]()


def draws(generator, size):
    return (
        generator.integers(25, size=size),
        generator.random((size, 2)),
        generator.choice([-1, 1], (size, 2)),
    )


@pytest.mark.parametrize("channels", [3, 1])
def test_each_image_gets_the_two_operations_of_its_sub_policy_as_pillow_computes_them(channels):
    images = pictures(400, channels)
    fill = FILL[:channels]
    found = keras_ldam.augment(images, np.random.default_rng(5), fill=fill)
    seen = set()
    chosen, chances, signs = draws(np.random.default_rng(5), len(images))
    for i, (number, chance, sign) in enumerate(zip(chosen, chances, signs, strict=True)):
        image, parts = Image.fromarray(images[i].squeeze()), SUBPOLICIES[number]
        for step in range(2):
            name, probability, magnitude = parts[3 * step : 3 * step + 3]
            if chance[step] < float(probability):
                image = by_pillow(name, int(magnitude), sign[step], image)
                seen.add(name)
        expected = np.asarray(image).reshape(images[i].shape).astype(int)
        # Blends of floats may round otherwise on other processors.
        assert np.abs(found[i] - expected).max() <= 1, parts
        assert (found[i] != expected).mean() < 0.01, parts
    assert len(seen) == 13
    assert found.dtype == np.uint8


def test_the_policy_has_the_25_sub_policies_of_the_paper_and_changes_no_input():
    assert len(CIFAR10_POLICY) == len(SUBPOLICIES) == 25
    images = pictures(50)
    before = images.copy()
    found = keras_ldam.augment(images, np.random.default_rng(0))
    np.testing.assert_array_equal(images, before)
    assert 0.5 < (found != images).any((1, 2, 3)).mean() < 1


def test_cutout_fills_a_square_around_any_pixel_and_cuts_off_what_is_outside():
    images = np.zeros((3000, 12, 8, 3), "uint8")
    cut = functools.partial(keras_ldam.augment, autoaugment=False, fill=FILL)
    found = cut(images, np.random.default_rng(1), cutout=4)
    mask = found[..., 0] > 0
    np.testing.assert_array_equal(found, mask[..., None] * np.array(FILL))
    rows, columns = mask.any(2), mask.any(1)
    np.testing.assert_array_equal(mask, rows[:, :, None] & columns[:, None, :])
    # Of four pixels, two lie before the center and one after it.
    starts = {(int(r.argmax()), int(r.sum())) for r in rows}
    assert starts == {(0, 2), (0, 3), *((start, 4) for start in range(9)), (9, 3)}
    share = mask.mean()
    assert share == pytest.approx((4 * 12 - 4) * (4 * 8 - 4) / (12 * 8) ** 2, rel=0.03)
    assert cut(images[:5], np.random.default_rng(1), cutout=40).min() > 0


def test_seed_epoch_and_batch_decide_what_is_drawn():
    images, labels = pictures(60), np.repeat([0, 1], 30)

    def made(**changes):
        data = (images, labels, np.ones(60, "float32"))
        how = {"cutout": 8, "batch_size": 20, "seed": 3, **changes}
        return keras_ldam.augmented(data, **how)

    batches, again = made(), made()
    for other in (batches, again):
        other.epoch = 1
    (x, y, weight), plain = batches[2], batches.batches[2]
    np.testing.assert_array_equal(x, again[2][0])
    np.testing.assert_array_equal(y, plain[1])
    assert (x != plain[0]).any((1, 2, 3)).all() and len(weight) == 20
    assert (x != made(seed=4)[2][0]).any()
    again.on_epoch_end()
    assert again.epoch == again.batches.epoch == 2
    assert (x != again[2][0]).any()


def test_labels_of_any_form_stay_beside_their_images():
    images, soft = pictures(60), np.random.default_rng(0).dirichlet(np.ones(3), 60)
    numbers = np.repeat([0, 2], 30)  # Without an example of class 1.
    batches = {
        kind: keras_ldam.augmented((images, y), cutout=8, batch_size=20)
        for kind, y in (("soft", soft), ("numbers", numbers), ("places", np.arange(60)))
    }
    places = batches["places"][1][1]
    assert len(set(places)) == 20
    np.testing.assert_array_equal(batches["soft"][1][1], soft[places])
    np.testing.assert_array_equal(batches["numbers"][1][1], numbers[places])


def test_the_epoch_reaches_the_batches_inside_and_their_labels_stay():
    data = pictures(60), np.repeat([0, 1], 30)
    mixed = keras_ldam.mixed(data, "cutmix", batch_size=20, verbose=0)
    batches = keras_ldam.augmented(mixed, cutout=8)
    keras_ldam.EpochClock(batches).on_epoch_begin(3)
    assert batches.epoch == mixed.epoch == 3
    assert len(batches) == 3
    np.testing.assert_array_equal(batches[1][1], mixed[1][1])


class Same(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return pictures(20), np.zeros(20)


def test_what_a_dataset_knows_of_its_epochs_is_passed_on():
    class Counted(keras.utils.PyDataset):
        begun = 0

        @property
        def num_batches(self):
            return 2

        def on_epoch_begin(self):
            self.begun += 1

        def __getitem__(self, index):
            return pictures(20), np.zeros(20)

    data = Counted()
    batches = keras_ldam.augmented(data, cutout=8)
    assert batches.num_batches == 2
    batches.on_epoch_begin()
    assert data.begun == 1


def test_batches_without_an_epoch_are_changed_anew_in_each():
    batches = keras_ldam.augmented(Same(), cutout=8)
    first = batches[0][0]
    assert (first != batches[1][0]).any()
    batches.on_epoch_end()
    assert batches.epoch == 1
    assert (first != batches[0][0]).any()


def test_both_images_of_a_mixture_are_augmented_before_they_are_mixed():
    white = np.full((40, 8, 8, 3), 255, "uint8")
    black_out = functools.partial(keras_ldam.augment, autoaugment=False, cutout=40, fill=0)
    data = white, np.repeat([0, 1], 20)
    batches = keras_ldam.mixed(data, "mixup", augment=black_out, verbose=0)
    assert batches[0][0].max() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutout": -1}, "`cutout` must be a whole number of at least 0. Received: -1"),
        ({"autoaugment": "cifar10"}, "`autoaugment` must be True or False. Received: 'cifar10'"),
        ({"autoaugment": False}, "`cutout` must be above 0 without `autoaugment`"),
        ({"fill": 256}, "`fill` must be a whole number from 0 to 255.* Received: fill=256"),
        ({"fill": 0.5}, "`fill` must be a whole number from 0 to 255.* Received: fill=0.5"),
        ({"fill": (1, 2)}, "`fill` must be one number or 3, .* Received: fill=\\(1, 2\\)"),
        ({"data": pictures(4) / 255}, "`images` must be uint8 .* Received: float64, shape"),
        ({"data": pictures(4)[..., :2]}, r"1 or 3 channels. Received: uint8, shape \(4, 32"),
        ({"dataset": 3}, "`data` must be arrays `.x, y.` or a `keras.utils.PyDataset`.*: int"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_augmented_is_refused(changes, message):
    images = changes.pop("data", pictures(4))
    data = changes.pop("dataset", (images, np.array([0, 1, 0, 1])))
    with pytest.raises(ValueError, match=message):
        keras_ldam.augmented(data, **changes)[0]


def test_a_batch_size_for_batches_is_refused():
    batches = keras_ldam.augmented((pictures(4), np.array([0, 1, 0, 1])))
    with pytest.raises(ValueError, match="`batch_size` must be None for"):
        keras_ldam.augmented(batches, batch_size=2)
