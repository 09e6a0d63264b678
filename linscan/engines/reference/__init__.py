"""Plain array code on NumPy or CuPy: the definition of each loop, read by learners, and the fallback for any dtype."""
