"""The claims of the source, each a runnable experiment with a verdict from data."""

from .plan import plan_run as plan_run
from .predict import plan_predictions as plan_predictions
from .predict import predict as predict
from .run import run_claims as run_claims
from .run import try_claim as try_claim
