"""GPU products, language models and fitted parameters shipped as data, with their sources."""
