"""Which sampling steps calibration data are taken from."""

from qdiff.errors import UserError


def kept_steps(steps: int, cali_st: int) -> list[int]:
    """Return the indices of the `cali_st` sampling steps whose inputs are kept, spread over the whole trajectory.

    Where `cali_st` divides `steps`, that is every (steps // cali_st)-th one.

    Raises:
        UserError: more calibration timesteps than sampling steps.
    """
    if cali_st > steps:
        raise UserError(
            f"--cali_st {cali_st} asks for more timesteps than the {steps} steps: lower it or raise the steps"
        )
    return [i * steps // cali_st for i in range(cali_st)]
