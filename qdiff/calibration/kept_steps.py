"""Which sampling steps calibration data are taken from."""

from qdiff.errors import UserError


def kept_steps(steps: int, cali_st: int, image: int = 0, images: int = 1) -> list[int]:
    """Return the indices of the `cali_st` sampling steps at which an image's inputs are kept, spread uniformly.

    Where `cali_st` divides `steps`, the first image has every (steps // cali_st)-th one. Those of the others lie
    between, so that a few images have samples of all timesteps: a layer of the time embedding sees as many different
    inputs as there are timesteps, and is wrong at those that it was not calibrated on.

    Args:
        steps: number of sampling steps.
        cali_st: how many of them are kept, 1 or more.
        image, images: number of the image, and of all images.

    Raises:
        UserError: more calibration timesteps than sampling steps.
    """
    if cali_st > steps:
        raise UserError(
            f"--cali_st {cali_st} asks for more timesteps than the {steps} steps: lower it or raise the steps"
        )
    return [(i * images + image) * steps // (cali_st * images) for i in range(cali_st)]
