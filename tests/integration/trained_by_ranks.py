"""Trains the recipes that it is given one after the other, in processes that are there already."""

import sys

from llmrl import train

if __name__ == "__main__":
    for recipe in sys.argv[1:]:
        train(recipe)
