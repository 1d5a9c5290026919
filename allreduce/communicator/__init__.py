"""What users hold: communicators, their collectives, and the arrays that these take."""

from allreduce.communicator.communicator import Communicator as Communicator
