"""The live controller: what is seen, decided, recorded and carried out, once a tick."""
