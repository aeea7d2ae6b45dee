# %% [markdown]
# # The latent space
#
# A flow is a bijection between images and latents. Simple operations on latents, such as a straight
# line, an average or a random draw, become meaningful changes of images. In this tutorial you will
#
# * encode images and decode them without loss,
# * check whether latents are normally distributed, scale by scale,
# * interpolate between two images, and on a torus through four images (equation 19 of the paper),
# * see what the latents of coarse and fine scales represent (appendix D of the paper),
# * trade diversity for quality with a temperature,
# * sample images that are larger than the training images.
#
# The models come with the package. The tutorial takes one minute on two processor cores.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfp_realnvp as tfr

SHORT = bool(os.environ.get("TUTORIALS_SHORT"))  # set by the tests: fewer images

photos, digits = (tfr.data.load_arrays(name) for name in ("photos", "digits"))
photo_flow, digit_mixture = (
    tfr.FlowModel.from_preset(name).distribution for name in ("photos", "digits")
)
num_images = 16 if SHORT else 128
images = photos.test[:num_images]


def show(images, title, num_values=256, **labels):
    """Draws continuous pixel values, [rows, columns, H, W, C]."""
    levels = tfr.to_uint8(images, num_values)
    tfr.plots.draw_grid(levels, title, num_values=num_values, **labels)
    plt.show()


# %% [markdown]
# ## Encode and decode
#
# `photos` is a flow of color patches of 32×32 pixels from two photographs. Test patches share no
# pixel with training patches. The latents have the shape of the image.
#
# The functions of `tfr.latents` add 0.5, the center of a gray level, to integers, and add no noise.

# %%
z = tfr.latents.encode(photo_flow, images)
decoded, largest_error = tfr.latents.reconstruct(photo_flow, images)
show(
    np.stack([images[:8] + 0.5, 20 * z[:8] + 128, decoded[:8]]),
    "Images, their latents, and the latents decoded",
    row_labels=["image", "latents", "decoded"],
)
print(f"latents {z.shape}, largest error of a pixel: {largest_error:.1e} gray levels")
assert z.shape == images.shape
assert largest_error < 0.1

# %% [markdown]
# ## Are latents normal?
#
# If the flow fits, the latents of images are a standard normal sample: uncorrelated, with mean 0
# and standard deviation 1. The multi-scale flow factors out half of the dimensions after each
# scale, which gives three groups of latents, from fine to coarse.

# %%
print("scale  shape         mean  deviation  excess kurtosis")
statistics = tfr.latents.latent_statistics(photo_flow, images)
for number, scale in enumerate(statistics, start=1):
    print(
        f"{number}      {scale.shape!s:13}{scale.mean:5.2f}{scale.std:11.2f}"
        f"{scale.excess_kurtosis:17.2f}"
    )

# %% [markdown]
# The means and standard deviations are close to 0 and 1, but the tails are heavier than those of a
# normal distribution: a few patches do not fit well. Neighboring latents are nearly uncorrelated,
# unlike neighboring pixels.


# %%
def neighbor_correlation(values):
    """Returns the correlation of values [N, H, W, C] with their right neighbors."""
    return np.corrcoef(values[:, :, :-1].ravel(), values[:, :, 1:].ravel())[0, 1]


finest, *_ = photo_flow.bijector.split_latents(tf.constant(z))
pixel_correlation = neighbor_correlation(images.astype(float))
latent_correlation = neighbor_correlation(finest.numpy())
print(f"correlation of neighbors: pixels {pixel_correlation:.2f}, latents {latent_correlation:.2f}")

assert pixel_correlation > 0.8 and abs(latent_correlation) < 0.2
assert all(abs(scale.mean) < 0.3 and 0.7 < scale.std < 1.5 for scale in statistics), statistics

# %% [markdown]
# ## From one image to another
#
# In many dimensions a standard normal sample lies near the sphere of radius $\sqrt{D}$. The middle
# of a straight line between two latents is nearer to the center, so its image is too smooth.
# `tfr.latents.interpolate` therefore follows a great circle, unless you pass `spherical=False`.

# %%
first, second = images[:4], images[4:8]
path = tfr.latents.interpolate(photo_flow, first, second, num_steps=7)
line = tfr.latents.interpolate(photo_flow, first, second, num_steps=7, spherical=False)
ticks = [f"{step}/6" for step in range(7)]
show(path, "On a great circle", column_labels=ticks)
show(line, "On a straight line", column_labels=ticks)

radius = [
    np.linalg.norm(tfr.latents.encode(photo_flow, middle).reshape(4, -1), axis=1).mean()
    for middle in (first, path[:, 3], line[:, 3])
]
print(
    "radius of the latents: images {:.1f}, middle of circle {:.1f}, of line {:.1f}".format(*radius)
)
print(f"square root of the dimensions: {np.sqrt(images[0].size):.1f}")
assert np.abs(path[:, 0] - first - 0.5).max() < 0.1
assert np.abs(path[:, -1] - second - 0.5).max() < 0.1
assert radius[2] < 0.9 * radius[1]

# %% [markdown]
# ## The torus of four images
#
# The paper explores a manifold of images that four latents span with two angles:
#
# $$z = \cos\varphi\,(\cos\varphi'\, z_1 + \sin\varphi'\, z_2) +
# \sin\varphi\,(\cos\varphi'\, z_3 + \sin\varphi'\, z_4).$$
#
# The squares of the four weights sum to one, so $z$ resembles a standard normal sample. We use
# eight values per angle; the four digits are at the angles 0 and π/2. The preset `digits` is a
# mixture over clusters, each with its own latent space. Here we use the flow of the mixture without
# giving it a cluster, so all digits share one latent space. Many images between the four digits
# look like digits too, often of another class.

# %%
four = digits.test[[3, 12, 4, 7]]
digit_flow = digit_mixture.components_distribution
torus = tfr.latents.manifold(digit_flow, four, num_angles=8)
angles = ["0", "π/4", "π/2", "3π/4", "π", "5π/4", "3π/2", "7π/4"]
show(
    torus,
    "Four digits at the angles 0 and π/2",
    row_labels=angles,
    column_labels=angles,
    num_values=17,
)
corners = torus[[0, 0, 2, 2], [0, 2, 0, 2]]
assert np.abs(corners - four - 0.5).max() < 0.05

# %% [markdown]
# ## Levels of representation
#
# What do the latents of a scale represent? We keep an image's latents of the coarse scales, draw
# new latents for the other scales, and decode. `tfr.latents.levels_of_representation` repeats this
# for each scale: the first column keeps a quarter of the latents, and the last column keeps all
# latents.

# %%
levels = tfr.latents.levels_of_representation(photo_flow, images[:8], seed=0)
shares = [f"{100 * 0.5**k:.3g} %" for k in reversed(range(levels.shape[1]))]
show(
    np.concatenate([images[:8, np.newaxis] + 0.5, levels], axis=1),
    "Latents that are kept",
    column_labels=["image", *shares],
)


def correlation(a, b):
    """Returns the correlation of two images."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


kept = [np.mean([correlation(images[i], levels[i, k]) for i in range(8)]) for k in range(3)]
print("correlation with the image:", [round(float(value), 2) for value in kept])
assert kept[0] < kept[1] < kept[2] and kept[2] > 0.9999

# %% [markdown]
# A quarter of the latents determines colors and layout: the resulting image has a correlation of
# 0.78 with the original. The next quarter raises the correlation only to 0.83, and the finest half
# of the latents adds the texture.
#
# ## Temperature
#
# Scaling latents by a temperature below 1 gives images that are more likely and less diverse.
# `tfr.latents.sample_latents` draws latents. With the same seed, latents of two temperatures differ
# only in scale.

# %%
temperatures = [0.0, 0.5, 0.7, 0.85, 1.0]
latents = np.stack(
    [
        tfr.latents.sample_latents([8, 8, 1], 10, seed=3, temperature=temperature)
        for temperature in temperatures
    ]
)
samples = tfr.latents.decode(digit_flow, latents)
show(samples, "Digits by temperature", row_labels=[f"T = {t}" for t in temperatures], num_values=17)
log_prob = digit_flow.log_prob(tf.constant(samples)).numpy().mean(axis=1)
diversity = samples.std(axis=1).mean(axis=(1, 2, 3))
for row in zip(temperatures, log_prob, diversity, strict=True):
    print(
        "T = {:<5} mean log density {:7.1f} nats, deviation of a pixel {:.2f} levels".format(*row)
    )
assert np.all(np.diff(diversity) > 0)

# %% [markdown]
# ## Larger images
#
# The networks are convolutional. Latents of 64×64×3 decode to an image of 64×64 pixels, although
# the flow has seen only 32×32.

# %%
large = tfr.latents.extrapolate(photo_flow, [64, 64, 3], 1 if SHORT else 4, seed=0)
show(large[np.newaxis], "Samples of 64×64 pixels, trained at 32×32")
assert large.shape[1:] == (64, 64, 3) and np.isfinite(large).all()
