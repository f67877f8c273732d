"""Training that can be wound back bit for bit."""

from . import data as data
from . import live as live
from . import optim as optim
from . import physics as physics
from . import tasks as tasks
from . import testing as testing
from .errors import *  # noqa: F403
from .optim import replay as replay
from .trajectory import Trajectory as Trajectory
