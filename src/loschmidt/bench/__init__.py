"""What reversible steps cost: beside torch.optim, beside the bytes they move, and beside other ways to go back."""

from .plan import SECTIONS as SECTIONS
from .plan import BenchPlan as BenchPlan
from .plan import default_plan as default_plan
from .run import run_bench as run_bench
