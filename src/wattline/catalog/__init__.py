"""GPU products, language models and fitted parameters, each number with its source.

One file per product in `gpus/`, one per model shape in `models/`, one per fitted product in
`fitted/`: adding a file adds the entry.
"""

from wattline.catalog.engines import engine, engine_polynomial, engine_profile
from wattline.catalog.fits import fit
from wattline.catalog.products import gpu, gpu_names
from wattline.catalog.specs import model, model_names

__all__ = [
    "engine",
    "engine_polynomial",
    "engine_profile",
    "fit",
    "gpu",
    "gpu_names",
    "model",
    "model_names",
]
