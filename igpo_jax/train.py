"""Trains a masked diffusion language model: SFT, then IGPO, with evaluations around each stage.

Usage:
  python -m igpo_jax.train --config=configs/quickstart.py --workdir=runs/first
  python -m igpo_jax.train --config=configs/quickstart.py:grpo --workdir=runs/baseline --config.seed=1

Run again with the same --workdir, it goes on from the newest checkpoint.
"""

from igpo_jax import cli, settings


def main(command: cli.Command) -> None:
    """Reads the settings, starts the judge and the devices, and runs the recipe."""
    from igpo_jax.training.run_settings import RunSettings

    run_settings = settings.from_config_dict(RunSettings, command.config)

    from igpo_jax.parallel import mesh
    from igpo_jax.rewards.pool import JudgePool

    # The worker processes start before JAX's own threads, and the number of devices is fixed before the first array.
    with JudgePool(run_settings.judge) as judge:
        cores = mesh.usable_cores()
        devices = run_settings.cpu_devices or mesh.cpu_device_count(run_settings.batches, cores)
        mesh.force_cpu_devices(devices)
        if devices < cores and not run_settings.cpu_devices:
            rows = ", ".join(str(rows) for rows in sorted(set(run_settings.batches)))
            print(
                f"on CPU {devices} of {cores} cores are used: more do not divide every batch ({rows} rows)", flush=True
            )

        from igpo_jax.training import recipe

        recipe.train(run_settings, command.workdir.absolute(), judge)


if __name__ == "__main__":
    cli.run(main)
