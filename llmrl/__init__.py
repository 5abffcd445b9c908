"""llmrl: post-training for language models. Importing it is free; everything heavy loads when it is used."""

__version__ = "0.1.0"
__all__ = ["train", "__version__"]


def __getattr__(name: str):
    if name == "train":
        from llmrl.api import train

        return train
    raise AttributeError(f"module 'llmrl' has no attribute {name!r}")
