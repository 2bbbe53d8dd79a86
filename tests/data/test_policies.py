"""TrivialAugment and RandAugment are torchvision's, from a random state that an image's own numbers seed."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from ssfnas_cli.data import policies
from ssfnas_cli.data.augment import Augmentation, Normalise, crop_and_flip, draw_uniforms, to_float
from ssfnas_cli.data.policies import Policy, build_policy, seeds
from ssfnas_cli.settings import RetrainSettings

POLICIES = [Policy("trivial"), Policy("rand"), Policy("rand", 3, 20)]


def theirs(policy):
    return v2.TrivialAugmentWide() if policy.name == "trivial" else v2.RandAugment(policy.num_ops, policy.magnitude)


def pixels(num=64, side=32, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, channels), dtype=np.uint8)


def drawn(num, epoch=0):
    return draw_uniforms(3, epoch, np.arange(num), 1)[0]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_images_are_torchvisions_from_a_state_seeded_by_their_numbers(policy, channels):
    images, rows = pixels(channels=channels), drawn(64)
    ours = policy(images, rows)
    assert ours.dtype == np.uint8 and ours.shape == images.shape
    for image, row, result in zip(images, rows, ours, strict=True):
        words = [int(value * 2**24) for value in row[[5, 6]].astype(np.float64)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(words[0] * 256 + words[1] // 2**16)
            expected = theirs(policy)(torch.from_numpy(image).permute(2, 0, 1))
        assert np.array_equal(result, expected.permute(1, 2, 0).numpy())
    assert sum(not np.array_equal(one, other) for one, other in zip(images, ours, strict=True)) > 32


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["trivial", "rand"])
def test_every_op_works_on_colour_and_on_grey(name, channels, monkeypatch):
    seen = set()
    kind = type(theirs(Policy(name)))
    apply = kind._apply_image_or_video_transform

    def spy(self, image, transform_id, *args, **kwargs):
        seen.add(transform_id)
        return apply(self, image, transform_id, *args, **kwargs)

    monkeypatch.setattr(kind, "_apply_image_or_video_transform", spy)
    Policy(name)(pixels(400, side=9, channels=channels), drawn(400))
    assert seen == set(kind._AUGMENTATION_SPACE) and len(seen) == 14


def test_an_image_is_changed_alike_in_any_batch_and_differently_each_time():
    images, rows = pixels(40), drawn(40)
    whole = Policy("trivial")(images, rows)
    parts = [Policy("trivial")(images[k : k + 3], rows[k : k + 3]) for k in range(0, 40, 3)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, Policy("trivial")(images, drawn(40, epoch=1)))
    chosen = seeds(draw_uniforms(0, 0, np.arange(20_000), 1)[0])
    assert min(chosen) >= 0 and max(chosen) < 2**32
    assert len(set(chosen)) > 19_990, "32 bits: a coincidence or two in 20,000"
    assert abs(np.mean(chosen) / 2**32 - 0.5) < 0.01


def test_torchs_random_state_and_threads_are_left_alone_and_one_thread_computes(monkeypatch):
    threads, state = [], torch.get_rng_state()

    def look(image):
        threads.append(torch.get_num_threads())
        torch.rand(3)
        return image

    monkeypatch.setattr(policies, "_transform", lambda policy: look)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Policy("rand")(pixels(2), drawn(2))
        assert threads == [1, 1] and torch.get_num_threads() == 2, "sums of large images depend on the threads"
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("policy", [None, *POLICIES], ids=str)
def test_crop_and_flip_come_first_and_normalisation_and_cutout_after(policy):
    images, normalise = pixels(16), Normalise((0.5,) * 3, (0.25,) * 3)
    rows = draw_uniforms(7, 2, np.arange(16), 1)[0]
    (view,) = Augmentation(1, normalise, True, policy=policy)(images, 7, 2, np.arange(16))
    changed = crop_and_flip(images, rows, True)
    if policy is not None:
        changed = policy(changed, rows)
    assert torch.equal(view, normalise(to_float(changed)))
    assert view.is_contiguous(memory_format=torch.channels_last)
    (cut,) = Augmentation(1, normalise, True, 0.5, policy=policy)(images, 7, 2, np.arange(16))
    assert not cut[cut != view].any() and (cut != view).any()


def test_the_settings_choose_the_policy_and_small_images_get_a_warning(caplog):
    assert build_policy(RetrainSettings(), 8) is None
    strong = RetrainSettings(augment="rand", rand_ops=3, rand_magnitude=20)
    with caplog.at_level("WARNING", "ssfnas"):
        assert build_policy(strong, 8) == Policy("rand", 3, 20)
        assert build_policy(RetrainSettings(augment="trivial"), 32) == Policy("trivial")
        assert not caplog.messages
        build_policy(RetrainSettings(augment="trivial"), 8)
    assert "shifts some images by up to 32 pixels, and these have 8 a side; augment=rand" in caplog.messages[0]
