"""lmcodec: lossless text compression with a language model, context mixing and a range coder.

Importing the package imports neither torch nor transformers nor the native kernel: each is loaded by the
module that needs it.
"""

__version__ = "0.1.0"
