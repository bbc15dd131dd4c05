"""Small trained generators in the architectures of SDXL and Flux: pictures of emoji.

    captions   a caption as tensors, without a text encoder
    models     the two architectures, and loading their weights
    sampling   pictures from captions and seeds

See `README.md` beside this file for what they were trained on and how well they do.
"""

from toma_fx.demo.generators.captions import Text, embed
from toma_fx.demo.generators.models import NAMES, SIZES, Generator, build, load
from toma_fx.demo.generators.sampling import generate

__all__ = ["NAMES", "SIZES", "Generator", "Text", "build", "embed", "generate", "load"]
