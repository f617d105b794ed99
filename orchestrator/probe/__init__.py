"""Representation probe: how well does a model separate the domains internally, before and after fine-tuning?

    h_n = (1/|n|) sum over tokens t of text n of the hidden state of t after one layer

for held-out texts of each domain, as plain documents: the tokens of a chat format are the same in every text and would
pull all means together. This follows the analysis of the DMT paper (arXiv 2310.05492), which shows a t-SNE plot of a
middle layer and reports that abilities mixed in training form separate clusters. A plot invites overinterpretation, so
three numbers accompany it, all computed from the states, not from the plot:

    silhouette             how much closer a text is to its own domain than to the next; 1 separate, 0 mixed
    linear probe           cross-validated accuracy of a logistic regression that predicts the domain
    centroid distances     between the domains' means, in units of the mean spread within a domain

From the paper: t-SNE of one middle layer. Ours: the mean over tokens, the numbers, the standardised states. The linear
probe saturates: any model separates domains with distinct vocabularies at every layer. In that case look at the
silhouette and at domains close to each other. t-SNE preserves neighbourhoods, not distances: gaps mean nothing.
"""
