"""Discretised dynamical systems as Keras layers, and the isometric plumbing between them."""

from dynzoo.layers.gradient_flow import GradientFlow as GradientFlow
from dynzoo.layers.isometries import ChannelPadding as ChannelPadding
from dynzoo.layers.isometries import MaxMin as MaxMin
from dynzoo.layers.isometries import MaxMinShift as MaxMinShift
from dynzoo.layers.isometries import MeanShift as MeanShift
from dynzoo.layers.isometries import SpaceToDepth as SpaceToDepth
from dynzoo.layers.isometries import SpatialShift as SpatialShift
from dynzoo.layers.linear import OrthonormalDense as OrthonormalDense
from dynzoo.layers.linear import OrthonormalPointwise as OrthonormalPointwise
from dynzoo.layers.linear import PositionOffset as PositionOffset
from dynzoo.layers.linear import ScaledAveragePooling2D as ScaledAveragePooling2D
from dynzoo.layers.linear import UnitRowDense as UnitRowDense
