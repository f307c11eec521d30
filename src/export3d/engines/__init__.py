"""How a trained model is run: in float32, or at the precision and by the library that a machine is fast with."""
