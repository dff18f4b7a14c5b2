"""Signs what is built, and checks who signed what is read."""
