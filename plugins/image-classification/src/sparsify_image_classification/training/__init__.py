"""Train image classifiers with a recipe's modifiers; needs the extra `train`."""
