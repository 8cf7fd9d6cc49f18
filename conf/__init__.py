"""The Hydra tree, importable so that ``pkg://p2o.conf`` finds it wherever p2o is installed."""
