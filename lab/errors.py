"""What the lab raises on the host when it cannot go on; the command line prints its text and nothing else."""

__all__ = ["LabError"]


class LabError(Exception):
    """Something the person at the keyboard can mend; the text says how."""
