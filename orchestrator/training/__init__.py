"""One run: prepare its data, train it, write its results."""
