"""Linear operators: apply, exact adjoint, and what is known of their spectrum."""

from dynzoo.operators.base import MatrixOperator as MatrixOperator
from dynzoo.operators.base import Operator as Operator
from dynzoo.operators.base import get as get
from dynzoo.operators.conv import Conv as Conv
from dynzoo.operators.conv import DeltaOrthonormal as DeltaOrthonormal
from dynzoo.operators.dense import Dense as Dense
from dynzoo.operators.dense import Pointwise as Pointwise
from dynzoo.operators.shift import ShiftedPointwise as ShiftedPointwise
from dynzoo.operators.shift import shift as shift
