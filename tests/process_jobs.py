"""Jobs for working processes; importable there."""

import os
import signal
import time

from m2h_lightning.errors import DataError


def double(number):
    return 2 * number


def slow_double(number):
    time.sleep(0.05)
    return 2 * number


def refuse(number):
    raise DataError(f"number {number} is not wanted")


def fail(number):
    raise ZeroDivisionError(number)


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)
