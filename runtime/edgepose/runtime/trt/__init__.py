"""TensorRT on the board: engines built, cached, checked and run, on one code path for 8.5 to 11.4.

Few modules name `tensorrt` (`board`, `build`, `precision`, `listener`, `monitor`, `implicit`, `runner`), one
each `pycuda` and `cuda`; always inside functions, and never before the driver was asked (`driver`).
"""
