"""Representation probe: how well does a model keep the domains apart inside, before and after fine-tuning?

    h_n = (1/|n|) sum over tokens t of text n of the hidden state of t after one layer

for held-out texts of each domain, as plain documents: the tokens of a chat format are the same in every text and would
pull all means together. It is the analysis of the DMT paper (arXiv 2310.05492), which shows a t-SNE picture of a layer
in the middle of the model and says that abilities mixed in training fall apart into clusters. A picture is easily read
too well, so there are three numbers beside it, all of them of the states themselves and not of the picture:

    silhouette             how much nearer a text is to its own domain than to the next one; 1 apart, 0 mixed
    linear probe           accuracy, over folds, of a logistic regression that is to name the domain
    centroid distances     between the domains' means, in units of the mean spread within a domain

Certain of the paper: t-SNE of one middle layer. Ours: the mean over tokens, the numbers, the standardised states. The
linear probe saturates: domains with their own vocabulary are told apart by any model, at every layer. Then look at the
silhouette, and at domains that are near each other. t-SNE keeps neighbours, not distances: gaps in it mean nothing.
"""
