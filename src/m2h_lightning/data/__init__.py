"""Data: the sample contract, transforms, loaders, and one file per data set."""
