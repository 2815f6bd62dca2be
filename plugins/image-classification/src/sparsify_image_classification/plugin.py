"""Image classification: image folders, preprocessing as data, the bundled digits."""

from __future__ import annotations

from sparsify import Entry, hookimpl


@hookimpl
def use_cases() -> tuple[Entry, ...]:
    return (
        Entry(
            name="image-classification",
            target="sparsify_image_classification.use_case:USE_CASE",
            summary="one label an image: folders by class, WebDataset shards, Hugging Face's folders and files",
            accepts=("imagefolder", "image-metadata", "webdataset", "image-parquet", "npz"),
            metric="accuracy",
        ),
    )


@hookimpl
def dataset_loaders() -> tuple[Entry, ...]:
    return (
        Entry(
            name="imagefolder",
            target="sparsify_image_classification.imagefolder:LOADER",
            summary="folders of images by class, with or without train/ and val/",
        ),
        Entry(
            name="image-metadata",
            target="sparsify_image_classification.metadata:LOADER",
            summary="images with their labels in metadata.jsonl or metadata.csv, as Hugging Face's imagefolder",
        ),
        Entry(
            name="webdataset",
            target="sparsify_image_classification.webdataset:LOADER",
            summary="tar shards of .jpg beside .cls or .json, by split: train-*.tar, val-*.tar",
        ),
        Entry(
            name="image-parquet",
            target="sparsify_image_classification.parquet:LOADER",
            summary="Hugging Face image datasets in Parquet files, or Arrow files of save_to_disk; needs pyarrow",
        ),
    )


@hookimpl
def trainers() -> tuple[Entry, ...]:
    return (
        Entry(
            name="image-classification",
            target="sparsify_image_classification.training.trainer:TRAINER",
            summary="a PyTorch loop through Accelerate; torchvision, timm and your own models",
            requires=("torch", "sparsify-torch", "accelerate"),
            returns="torch",
        ),
    )


@hookimpl
def evaluators() -> tuple[Entry, ...]:
    return (
        Entry("top5", "sparsify_image_classification.metrics:TOP5", "Top-5 accuracy"),
        Entry("f1", "sparsify_image_classification.metrics:F1", "Macro F1 over classes"),
        Entry("recall", "sparsify_image_classification.metrics:RECALL", "Macro recall over classes"),
    )


@hookimpl
def commands() -> tuple[Entry, ...]:
    return (
        Entry(
            name="demo",
            target="sparsify_image_classification.demo:app",
            summary="run one-shot on the bundled digits: no network, no data of your own",
        ),
    )
