"""Experiment trackers: a callback that logs a fit to MLflow, and one for Weights & Biases.

pip install mlflow     python examples/trackers.py mlflow --epochs 5
pip install wandb      python examples/trackers.py wandb --epochs 5      (WANDB_MODE=offline needs no account)
"""

import argparse
from typing import Any

import cifarnets
from cifarnets import Trainer, create
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, train_val_split
from cifarnets.training import Callback


def figures(trainer: Trainer) -> dict[str, float]:
    """The figures of the last epoch, without its number, which is the step."""
    return {name: value for name, value in trainer.history[-1].items() if name != "epoch"}


class MLflowLog(Callback):
    """Logs settings once and figures after every epoch, as a run of an MLflow experiment."""

    def __init__(self, experiment: str, **settings: Any) -> None:
        self.experiment, self.settings = experiment, settings

    def on_fit_start(self, trainer: Trainer) -> None:
        import mlflow

        mlflow.set_experiment(self.experiment)
        mlflow.start_run()
        mlflow.log_params(self.settings)

    def on_epoch_end(self, trainer: Trainer) -> None:
        import mlflow

        mlflow.log_metrics(figures(trainer), step=trainer.epoch)

    def on_fit_end(self, trainer: Trainer) -> None:
        import mlflow

        mlflow.end_run("FAILED" if trainer.failed else "FINISHED")


class WandbLog(Callback):
    """Logs settings once and figures after every epoch, as a run of a project of Weights & Biases."""

    def __init__(self, project: str, **settings: Any) -> None:
        self.project, self.settings = project, settings
        self.run: Any = None

    def on_fit_start(self, trainer: Trainer) -> None:
        import wandb

        self.run = wandb.init(project=self.project, config=self.settings)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.run.log(figures(trainer), step=trainer.epoch)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self.run is not None:
            self.run.finish(exit_code=int(trainer.failed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tracker", choices=["mlflow", "wandb"])
    parser.add_argument("--epochs", type=int, default=5, help="passes over the images (default: 5)")
    options = parser.parse_args()

    cifarnets.seed_everything(0)
    train, val = train_val_split(SyntheticCIFAR10(train=True, size=1000), val=200)
    log = MLflowLog if options.tracker == "mlflow" else WandbLog
    settings = {"model": "convnet", "lr": 0.02, "batch_size": 64, "epochs": options.epochs}
    trainer = Trainer(create("convnet"), lr=0.02, callbacks=[log("cifarnets", **settings)])
    trainer.fit(BatchLoader(train, shuffle=True), BatchLoader(val, batch_size=200), epochs=options.epochs)
    print(f"logged {len(trainer.history)} epochs to {options.tracker}")


if __name__ == "__main__":
    main()
