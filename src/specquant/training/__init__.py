"""The recipe that made the models in data/tiny: from text to weights, minutes on one GPU (`specquant train-tiny`)."""
