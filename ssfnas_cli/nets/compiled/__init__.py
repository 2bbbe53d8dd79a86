"""Autograd functions over the compiled kernels (ssfnas_cli/native), whose sources use the same words.

fan: all candidate ops that leave one node of a cell; each adds its result to the sums of later nodes, its targets.
branch: one op of a fan, as one or two stages, a pool or the identity; a stage is ReLU, depthwise and pointwise
    convolution, and batch normalisation (BN). An item is one stage or pool; a group is the items that share an input.
projection: ReLU, 1x1 convolutions and BN, which bring a cell's input to the cell's width.
block: as many channels as a vector has lanes; the kernels cut maps into blocks as they read them.
side by side: where a vector has room for the channels of several images, these count as the channels of one image.
upstream: a gradient that arrives at an item's result, from a target's sum (to which a term added it) or a later stage.
"""
