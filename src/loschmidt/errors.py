"""What can go wrong, each with what was seen and one remedy.

Every error derives from `LoschmidtError` and also from the builtin that fits it, so that
`except ValueError` keeps working in code that knows nothing of this package.
"""


def printable(text: object) -> str:
    """Text as a terminal may have it: what is not printable (escape sequences, say) is spelled out; newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text))


class LoschmidtError(Exception):
    """Base of all errors of this package. Names and values of files are quoted in them, so they are made printable.

    Args:
        seen: what was seen and why it is refused, naming the user's parameter or setting.
        remedy: one thing the user can do.
    """

    def __init__(self, seen: str, remedy: str = ""):
        self.seen, self.remedy = printable(seen), printable(remedy)
        super().__init__(f"{self.seen} Remedy: {self.remedy}" if remedy else self.seen)


class InvalidSetting(LoschmidtError, ValueError):
    """A setting, option or argument that is unknown, out of range, or not reversible."""


class NonFinite(LoschmidtError, ArithmeticError):
    """NaN or infinity in a loss, a gradient or an update; the step was not taken."""


class ShellOutOfReach(NonFinite):
    """No momentum that can be chosen has the energy asked for; the step was not taken."""


class LossBelowF0(LoschmidtError, ArithmeticError):
    """The potential F - F0 is not positive, so its logarithm does not exist; the step was not taken."""


class LatticeOverflow(LoschmidtError, OverflowError):
    """A value does not fit its integer lattice; the step was not taken."""


class Nondeterministic(LoschmidtError, RuntimeError):
    """The same batch gave different bits twice, so no step could be undone."""


class ReplayMismatch(LoschmidtError, RuntimeError):
    """On the way back something differed from the record; the state was put back to where it was.

    Attributes:
        step: the step whose undoing was refused.
        tensor: the tensor or quantity that differed.
    """

    def __init__(self, seen: str, remedy: str, step: int, tensor: str):
        super().__init__(seen, remedy)
        self.step, self.tensor = step, tensor


class OutOfReach(LoschmidtError, IndexError):
    """A step below 0, or below what the tape and the journal hold."""


class EditedOutside(LoschmidtError, RuntimeError):
    """Weights, buffers or train/eval flags are not what the last step left."""


class SourceChanged(LoschmidtError, RuntimeError):
    """The dataset, the batch source or the environment is not the recorded one."""


class DamagedFile(LoschmidtError, OSError):
    """A saved run that cannot be read, or that does not hold what it says."""


class NotWritten(LoschmidtError, OSError):
    """Something could not be written: the disk is full, or may not be written to. What was there before still is."""


class InUse(LoschmidtError, RuntimeError):
    """Another process, or another `Trajectory` of this one, has the run's folder open."""


class NotSmooth(LoschmidtError, ValueError):
    """A step, or a model, that has no derivative which could be found."""


class Inconsistent(LoschmidtError, AssertionError):
    """Parameters are not the view of their integers right after a step: a fault of this package. Please report it."""


class NotReversible(LoschmidtError, AssertionError):
    """What `testing.assert_reversible` found: a run that did not come back, or a flipped bit that nobody noticed."""


class BelowResolution(UserWarning):
    """Updates smaller than the lattice resolution, which move nothing."""


class EnvironmentChanged(UserWarning):
    """A run goes on in another environment, in which the last step has the same bits."""
