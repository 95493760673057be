"""The article from the data to the validation accuracy: three classes of CIFAR-10, one convolutional net, one loop.

python examples/article.py --epochs 100
"""

import argparse
from pathlib import Path

import cifarnets
from cifarnets import Trainer, create, evaluate, load, predict, save
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, cifar_subset
from cifarnets.training import ArticleLog


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100, help="epochs to train (default: 100, as in the article)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the order (default: 0)")
    parser.add_argument("--data-root", type=Path, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--out", type=Path, default=Path("article.safetensors"), help="weight file to write")
    options = parser.parse_args()

    names = ["airplane", "automobile", "ship"]
    train = cifar_subset(CIFAR10Normalized(options.data_root, train=True, download=True), names)
    test = cifar_subset(CIFAR10Normalized(options.data_root, train=False), names)
    print(f"{len(train):,} training and {len(test):,} test images of {', '.join(names)}")

    cifarnets.seed_everything(options.seed)
    model = create("convnet")  # it has ten outputs, as in the article, and uses three of them
    print(cifarnets.models.summary(model))

    loader = BatchLoader(train, batch_size=64, shuffle=True, seed=options.seed)
    Trainer(model, lr=0.01, callbacks=[ArticleLog()]).fit(loader, epochs=options.epochs)
    for name, images in {"train": train, "test": test}.items():
        print(f"Accuracy {name}: {evaluate(model, BatchLoader(images, batch_size=1000)).accuracy:.4f}")

    path = save(model, options.out)
    prediction = predict(load(path), test.images[0], topk=3)
    print(f"Saved as {path}. Test image 0 is a picture of class {test.classes[test.targets[0]]}: {prediction}")


if __name__ == "__main__":
    main()
