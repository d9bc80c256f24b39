"""One-step methods, a family a file, with their order and what they preserve as data."""

from dynzoo.integrators.implicit import ImplicitEuler as ImplicitEuler
from dynzoo.integrators.implicit import ImplicitMidpoint as ImplicitMidpoint
from dynzoo.integrators.registry import INTEGRATORS as INTEGRATORS
from dynzoo.integrators.registry import Integrator as Integrator
from dynzoo.integrators.registry import table as table
from dynzoo.integrators.runge_kutta import EULER as EULER
from dynzoo.integrators.runge_kutta import HEUN as HEUN
from dynzoo.integrators.runge_kutta import RK4 as RK4
from dynzoo.integrators.runge_kutta import SSP3 as SSP3
from dynzoo.integrators.runge_kutta import RungeKutta as RungeKutta
from dynzoo.integrators.runge_kutta import get as get
from dynzoo.integrators.runge_kutta import names as names
from dynzoo.integrators.splitting import LEAPFROG as LEAPFROG
from dynzoo.integrators.splitting import SYMPLECTIC_EULER as SYMPLECTIC_EULER
from dynzoo.integrators.splitting import YOSHIDA4 as YOSHIDA4
from dynzoo.integrators.splitting import Splitting as Splitting
