"""Discretised dynamical systems as Keras layers, and the isometric plumbing between them."""

from dynzoo.layers.contractive_hamiltonian_flow import (
    ContractiveHamiltonianFlow as ContractiveHamiltonianFlow,
)
from dynzoo.layers.convection_diffusion_flow import (
    ConvectionDiffusionFlow as ConvectionDiffusionFlow,
)
from dynzoo.layers.feynman_kac import feynman_kac_mean as feynman_kac_mean
from dynzoo.layers.first_integral_flow import FirstIntegralFlow as FirstIntegralFlow
from dynzoo.layers.gradient_flow import GradientFlow as GradientFlow
from dynzoo.layers.graph_diffusion import GraphDiffusion as GraphDiffusion
from dynzoo.layers.hamiltonian_flow import HamiltonianFlow as HamiltonianFlow
from dynzoo.layers.heads import UnitRowDense as UnitRowDense
from dynzoo.layers.implicit_gradient_flow import (
    ImplicitGradientFlow as ImplicitGradientFlow,
)
from dynzoo.layers.isometries import BetaAbs as BetaAbs
from dynzoo.layers.isometries import ChannelPadding as ChannelPadding
from dynzoo.layers.isometries import MaxMin as MaxMin
from dynzoo.layers.isometries import MeanShift as MeanShift
from dynzoo.layers.isometries import SpaceToDepth as SpaceToDepth
from dynzoo.layers.learned_scale import LearnedScale as LearnedScale
from dynzoo.layers.linear import L2Pooling2D as L2Pooling2D
from dynzoo.layers.linear import OrthonormalDense as OrthonormalDense
from dynzoo.layers.linear import OrthonormalPointwise as OrthonormalPointwise
from dynzoo.layers.linear import PositionOffset as PositionOffset
from dynzoo.layers.linear import ScaledAveragePooling2D as ScaledAveragePooling2D
from dynzoo.layers.mass_preserving_flow import MassPreservingFlow as MassPreservingFlow
from dynzoo.layers.mass_preserving_flow import SumLift as SumLift
from dynzoo.layers.mass_preserving_flow import SumProjection as SumProjection
from dynzoo.layers.presnov_flow import PresnovFlow as PresnovFlow
from dynzoo.layers.resize import Resize as Resize
from dynzoo.layers.shifts import MaxMinShift as MaxMinShift
from dynzoo.layers.shifts import SpatialShift as SpatialShift
from dynzoo.layers.softmax_gradient_flow import (
    SoftmaxGradientFlow as SoftmaxGradientFlow,
)
from dynzoo.layers.spherical_flow import SphericalFlow as SphericalFlow
from dynzoo.layers.switching_flow import SwitchingFlow as SwitchingFlow
from dynzoo.layers.volume_preserving_flow import VolumePreservingFlow as VolumePreservingFlow
