"""What a run does: how perturbations grow, what comes back, how floats fail to; wells with exact answers."""

from . import wells as wells
from .echoes import echo as echo
from .gauge import gauge_directions as gauge_directions
from .naive import NaiveRun as NaiveRun
from .outcome import Echo as Echo
from .perturb import Exact as Exact
from .perturb import Floats as Floats
from .perturb import Fresh as Fresh
from .perturb import Momenta as Momenta
from .perturb import Nudge as Nudge
from .perturb import Perturbation as Perturbation
from .perturb import Rate as Rate
from .perturb import Sample as Sample
from .perturb import Unit as Unit
from .tangent import Lyapunov as Lyapunov
from .tangent import Tangent as Tangent
from .tangent import lyapunov as lyapunov
from .tangent import tangent as tangent
