"""`import tensorrt` on a board that is none: the stand-in on the driver of plain memory."""

import ctypes
import sys

import fakecuda
import standin_tensorrt

sys.modules[__name__] = standin_tensorrt.load("10.3", fakecuda.FakeGpu(ctypes.CDLL(fakecuda.NAME)))
