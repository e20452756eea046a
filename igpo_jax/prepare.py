"""Builds the data sets of a config and reports on them, without training.

Usage:
  python -m igpo_jax.prepare --config=configs/gsm8k_small.py --config.data.path=DIR --workdir=runs/gsm8k

Downloads what has no path, builds every split that the config's stages read, and encodes it with the config's tokenizer
and template. WORKDIR gets data_report.json, data_report.txt and data_lengths.png, which a training run writes as well,
and data/, which training with the same --workdir reads (--config.data.cache puts it elsewhere).
"""

from igpo_jax import cli, settings


def main(command: cli.Command) -> None:
    """Prepares the data and prints the report."""
    from igpo_jax.data import report
    from igpo_jax.pages.text import printable
    from igpo_jax.training import console
    from igpo_jax.training.prepared_data import prepare_data
    from igpo_jax.training.run_settings import RunSettings

    run_settings = settings.from_config_dict(RunSettings, command.config)
    workdir = command.workdir.absolute()
    data = prepare_data(run_settings, workdir)
    files = report.write_reports(workdir, data.reports)
    for line in report.as_text(data.reports).splitlines():
        print(printable(line))
    for line in report.summary(data.reports):
        console.note(printable(line))
    console.note(f"written to {workdir}: {', '.join(path.name for path in files)}")


if __name__ == "__main__":
    cli.run(main)
