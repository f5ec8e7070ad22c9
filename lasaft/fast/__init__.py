"""The network's form for inference: the same function as the plain one, in less time.

Three identities, all exact but for rounding, make it faster:

- BatchNorm in eval mode is scale * y + shift for each channel, so it goes into the weights before.
- A convolution over a concatenation is the sum of a convolution over each part, so nothing is
  concatenated, and what a part adds for all conditions is computed once.
- With the conditions known beforehand, so are attention weights, gammas and betas.

Layout of features in this package: tensors [batch, channel, bin, frame] with strides such that
memory holds [batch, bin, frame, channel] ("channels-last" for torch). The plain network has
[batch, channel, frame, bin]: ``x.mT`` goes from one to the other without a copy, and kernels are
transposed likewise ([outer, inner, bin, frame]). So all bins of some frames are one matrix, and
sums over neighbouring bins run over whole rows of memory. Shapes in docstrings are logical ones
unless they say "in memory". ``dtype`` is that of weights and features everywhere.
"""
